"""BERT and (XLM-)RoBERTa as published, and OpenCLIP's models that have one as their text tower."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ModelConfig
from clipjax.models.presets.open_clip import OPEN_CLIP_PRESETS
from clipjax.models.towers.bert import BertConfig

_BASE = dict(width=768, depth=12, num_heads=12, mlp_dim=3072)
_LARGE = dict(width=1024, depth=24, num_heads=16, mlp_dim=4096)


def _bert(vocab_size: int, **size: int) -> BertConfig:
    """transformers models/bert/configuration_bert.py."""
    rules = dict(pool="mean", projection="mlp", pad_id=0, norm_eps=1e-12)
    return BertConfig(vocab_size=vocab_size, num_positions=512, token_types=2, **rules, **size)


def _roberta(vocab_size: int, **size: int) -> BertConfig:
    """transformers' RobertaConfig and XLMRobertaConfig: positions start after the padding's id."""
    rules = dict(num_positions=514, token_types=1, pad_id=1, positions_after_padding=True, norm_eps=1e-5)
    return replace(_bert(vocab_size, **size), **rules)


# Name on the hub -> sizes and rules, with the pool and projection that OpenCLIP has by default.
BERT_TOWERS: dict[str, BertConfig] = {
    "bert-base-uncased": _bert(30_522, **_BASE),
    "bert-base-cased": _bert(28_996, **_BASE),
    "bert-large-uncased": _bert(30_522, **_LARGE),
    "bert-large-cased": _bert(28_996, **_LARGE),
    "roberta-base": _roberta(50_265, **_BASE),
    "roberta-large": _roberta(50_265, **_LARGE),
    "xlm-roberta-base": _roberta(250_002, **_BASE),
    "xlm-roberta-large": _roberta(250_002, **_LARGE),
}


def _model(image: str, text: str) -> ModelConfig:
    return replace(OPEN_CLIP_PRESETS[image], text=BERT_TOWERS[text])


BERT_PRESETS: dict[str, ModelConfig] = {
    "open_clip_roberta_vit_b32": _model("open_clip_vit_b32_quickgelu", "roberta-base"),
    "open_clip_xlm_roberta_base_vit_b32": _model("open_clip_vit_b32", "xlm-roberta-base"),
    "open_clip_xlm_roberta_large_vit_h14": _model("open_clip_vit_h14", "xlm-roberta-large"),
}
