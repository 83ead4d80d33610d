"""Which BERT a text tower is, where its tensors say the sizes but not the rules: heads, padding, positions, LayerNorm.

The first of these that is there decides:

1. the text tower's own config.json: in the directory that hf_model_name names, or beside the weights under any name
   that ends in config.json, with a model_type below,
2. the name of a published model (clipjax.models.presets.bert),
3. the tensors. BERT has two token types and a table of 512 positions, RoBERTa one type and 514 positions,
   since its first position comes after the padding's. Where they do not say it, a name with "bert" or "roberta" does.
   Heads are 64 wide, as in all published models but the MiniLM and TinyBERT kind, 384 and 312 wide, with twelve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipjax.interop import hf_parts
from clipjax.interop.json_fields import whole_number
from clipjax.interop.names import InteropError
from clipjax.interop.source import read_json
from clipjax.models.presets.bert import BERT_TOWERS
from clipjax.models.towers.bert import BertConfig

BERT, ROBERTA = BERT_TOWERS["bert-base-uncased"], BERT_TOWERS["roberta-base"]
KINDS = {"bert": BERT, "roberta": ROBERTA, "xlm-roberta": ROBERTA, "camembert": ROBERTA}  # model_type
ORGANISATIONS = re.compile("^(FacebookAI|google-bert)/")
TWELVE_HEADS = (312, 384)  # widths
DEFAULTS = dict(hidden_act="gelu", layer_norm_eps=1e-12, num_attention_heads=12)


def read_rules(
    name: str, where: str, shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, Any], at: str
) -> BertConfig:
    """The text tower with the right rules and heads; its sizes are yet to be read from the tensors.

    name: hf_model_name; where: field and value, for messages; shapes: name -> shape of every tensor; files: the JSON
    files beside the weights; at: how the tower's names begin. Raises InteropError where this is no BERT, or nothing
    says which.
    """
    table = shapes.get(f"{at}.embeddings.word_embeddings.weight", ())
    if len(table) != 2 or f"{at}.encoder.layer.0.attention.self.query.weight" not in shapes:
        raise InteropError(
            f"{where} is not supported: the text tower's tensors are not those of a BERT, RoBERTa or XLM-R "
            f"({at}.embeddings.word_embeddings.weight, {at}.encoder.layer.0.attention.self.query.weight, ...)."
        )
    width = table[1]
    if own := _own_config(name, files):
        return _configured(*own)
    known = BERT_TOWERS.get(ORGANISATIONS.sub("", name))
    if known is not None:
        return replace(known, num_heads=width // 64)
    return replace(_guessed(name, where, shapes, at), num_heads=_heads(width, where))


def _own_config(name: str, files: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    file = Path(name) / "config.json"
    if file.is_file():
        files = {str(file): read_json(file)}
    found = [(content, file) for file, content in files.items() if content.get("model_type") in KINDS]
    return found[0] if found else None


def _configured(config: Mapping[str, Any], where: str) -> BertConfig:
    kind = KINDS[config["model_type"]]
    c = {**DEFAULTS, "pad_token_id": kind.pad_id, **config}
    for field, value in dict(position_embedding_type="absolute", is_decoder=False).items():
        if c.get(field, value) not in (value, None):
            raise InteropError(f"{where}: {field}={c[field]!r} is not supported; expected {value!r}.")
    if c["hidden_act"] not in hf_parts.ACTIVATIONS:
        raise InteropError(f"{where}: hidden_act={c['hidden_act']!r} is not one of {', '.join(hf_parts.ACTIVATIONS)}.")
    return replace(
        kind,
        num_heads=whole_number(c["num_attention_heads"], f"{where}: num_attention_heads"),
        activation=hf_parts.ACTIVATIONS[c["hidden_act"]],
        norm_eps=float(c["layer_norm_eps"]),
        pad_id=whole_number(c["pad_token_id"], f"{where}: pad_token_id", least=0),
    )


def _guessed(name: str, where: str, shapes: Mapping[str, tuple[int, ...]], at: str) -> BertConfig:
    types = (*shapes.get(f"{at}.embeddings.token_type_embeddings.weight", ()), 0)[0]
    positions = (*shapes.get(f"{at}.embeddings.position_embeddings.weight", ()), 0)[0]
    if types == 2 and positions % 64 == 0:
        return BERT
    if types == 1 and positions % 64 == 2:
        return ROBERTA
    if "roberta" in name.lower():
        return ROBERTA
    if "bert" in name.lower():
        return BERT
    raise InteropError(
        f"{where}: neither the name nor the tensors ({types} token types, {positions} positions) say whether this is a "
        "BERT or a RoBERTa. Put the text model's config.json, with its model_type, beside the weights."
    )


def _heads(width: int, where: str) -> int:
    if width in TWELVE_HEADS:
        return 12
    if width % 64:
        raise InteropError(
            f"{where}: the text tower is {width} wide, and nothing says how many heads it has. Put the text model's "
            "config.json, with its num_attention_heads, beside the weights."
        )
    return width // 64
