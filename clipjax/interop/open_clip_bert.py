"""OpenCLIP's models with a text tower from transformers (BERT, RoBERTa, XLM-R). Names from open_clip hf_model.py.

open_clip_config.json names the text tower on the Hugging Face hub and gives no sizes: those are read from the tensors.
The name decides the rules of padding, positions and LayerNorm; heads are 64 wide in all of them. To build such a model,
open_clip asks the hub, or its cache, for the configuration of that name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipjax.config import ModelConfig
from clipjax.interop import hf_parts, open_clip, open_clip_config
from clipjax.interop.layouts import linear
from clipjax.interop.names import (
    Description,
    Family,
    InteropError,
    Meaning,
    Tensor,
    computed_fields,
    norm,
    weight_and_bias,
)
from clipjax.interop.open_clip_parts import image_tower
from clipjax.models.presets.bert import BERT_TOWERS
from clipjax.models.towers.bert import BertConfig

IGNORED = rf"{open_clip.IGNORED}|.*\.(position|token_type)_ids"
# hf_pooler_type -> ours. Only the first keeps BERT's pooler in the model.
POOLERS = {"cls_pooler": "pooler", "cls_last_hidden_state_pooler": "cls", "mean_pooler": "mean"}
PROJECTIONS = {"mlp": "mlp", "linear": "linear", None: "none"}
# What text_cfg says beside the name on the hub; all other fields follow from the name.
CONFIGURED = ("context_length", "pool", "pooler", "projection", "projection_bias")


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    return [*open_clip.scalars(model), *text_tensors(model), *image_tower(model)]


def matches(description: Description) -> bool:
    """Whether the text tower is named on the hub and the image tower is OpenCLIP's own."""
    model = description.files.get(open_clip.CONFIG, {}).get("model_cfg", {})
    hf, others = model.get("text_cfg", {}).get("hf_model_name"), model.get("vision_cfg", {}).get("timm_model_name")
    return bool(hf) and not others and "multimodal_cfg" not in model


def read(description: Description) -> Meaning:
    """Raises InteropError for a text model, pooler, projection or image tower that clipjax does not support."""
    model = open_clip_config.model_cfg(description)
    text = read_text(model["text_cfg"], description.shapes)
    return open_clip.read_around(description, open_clip.read_image(model), text)


def read_text(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> BertConfig:
    """The text tower of text_cfg (`config`), with the sizes of the tensors (`shapes`: name -> shape)."""
    where, name = f"{open_clip.CONFIG}: text_cfg", config["hf_model_name"]
    known = BERT_TOWERS.get(re.sub("^(FacebookAI|google-bert)/", "", name))
    if known is None:
        raise InteropError(f"{where}.hf_model_name='{name}' is not supported. Known: {', '.join(BERT_TOWERS)}.")
    pooler, projection = config.get("hf_pooler_type", "mean_pooler"), config.get("hf_proj_type", "mlp")
    if pooler not in POOLERS:
        raise InteropError(f"{where}.hf_pooler_type={pooler!r} is not one of {', '.join(POOLERS)}.")
    if projection not in PROJECTIONS:
        raise InteropError(f"{where}.hf_proj_type={projection!r} is not one of mlp, linear, null.")
    at = "text.transformer"
    try:
        vocab_size, width = shapes[f"{at}.embeddings.word_embeddings.weight"]
        num_positions, _ = shapes[f"{at}.embeddings.position_embeddings.weight"]
        token_types, _ = shapes[f"{at}.embeddings.token_type_embeddings.weight"]
        mlp_dim, _ = shapes[f"{at}.encoder.layer.0.intermediate.dense.weight"]
    except (KeyError, ValueError) as error:
        raise InteropError(f"The text tower is not a {name}: {error} is missing or has another shape.") from error
    return replace(
        known,
        vocab_size=vocab_size,
        context_length=config.get("context_length", open_clip.TEXT["context_length"]),
        num_positions=num_positions,
        token_types=token_types,
        width=width,
        depth=len({name.split(".")[4] for name in shapes if name.startswith(f"{at}.encoder.layer.")}),
        num_heads=width // 64,
        mlp_dim=mlp_dim,
        pool=POOLERS[pooler],
        pooler=pooler == "cls_pooler",
        projection=PROJECTIONS[projection],
    )


def write(meaning: Meaning) -> dict[str, Any]:
    """Raises InteropError for a text tower that has no name on the hub."""
    model, text = meaning.model, meaning.model.text
    names = [name for name, known in BERT_TOWERS.items() if _named(known) == _named(text)]
    if not names:
        known = ", ".join(BERT_TOWERS)
        raise InteropError(f"open_clip's text_cfg names a model on the hub, and config.model.text is none of {known}.")
    pooler = {ours: theirs for theirs, ours in POOLERS.items()}.get(text.pool)
    projection = {ours: theirs for theirs, ours in PROJECTIONS.items()}[text.projection]
    config = dict(hf_model_name=names[0], hf_tokenizer_name=names[0], hf_model_pretrained=False)
    config |= dict(context_length=text.context_length, hf_pooler_type=pooler, hf_proj_type=projection)
    quick = model.image.activation == "quick_gelu"
    return open_clip.write_around(meaning, open_clip.write_image(model.image), config, quick_gelu=quick)


def hub_config(text: BertConfig) -> dict[str, Any]:
    """The text tower's config.json, as it is on the hub."""
    return dict(
        model_type="xlm-roberta" if text.positions_after_padding else "bert",  # RoBERTa computes what XLM-R does
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        num_hidden_layers=text.depth,
        num_attention_heads=text.num_heads,
        intermediate_size=text.mlp_dim,
        max_position_embeddings=text.num_positions,
        type_vocab_size=text.token_types,
        pad_token_id=text.pad_id,
        layer_norm_eps=text.norm_eps,
    )


def text_tensors(model: ModelConfig) -> list[Tensor]:
    """The text tower's part of the table: text.transformer.* and text.proj.*."""
    text, at = model.text, "text.transformer.embeddings"
    tensors = [
        Tensor("text/token_embedding/embedding", (f"{at}.word_embeddings.weight",)),
        Tensor("text/position_embedding", (f"{at}.position_embeddings.weight",)),
        Tensor("text/token_type_embedding", (f"{at}.token_type_embeddings.weight",)),
        *norm("text/ln_embedding", f"{at}.LayerNorm"),
        *hf_parts.bert_blocks("text", "text.transformer"),
    ]
    if text.pooler:
        tensors += weight_and_bias("text/pooler", "text.transformer.pooler.dense", linear)
    if text.projection == "mlp":
        tensors += weight_and_bias("text/projection_hidden", "text.proj.0", linear, text.projection_bias)
        tensors += weight_and_bias("text/projection", "text.proj.2", linear, text.projection_bias)
    elif text.projection == "linear":
        tensors += weight_and_bias("text/projection", "text.proj", linear, text.projection_bias)
    return tensors


def _named(text: BertConfig) -> dict[str, Any]:
    return {name: value for name, value in computed_fields(text).items() if name not in CONFIGURED}


FAMILY = Family(
    tensors,
    matches,
    read,
    write=write,
    text=BertConfig,
    hub_config=hub_config,
    **open_clip.OPTIONS | dict(ignored=IGNORED),
)
