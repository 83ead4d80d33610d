"""Text towers that open_clip takes from transformers (BERT, RoBERTa, XLM-R): names from open_clip hf_model.py.

open_clip_config.json names the model on the hub and says no sizes: they are the tensors'. The name says which rules of
padding, of positions and of LayerNorm there are; heads are of 64 in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clipjax.config import ModelConfig, TextTowerConfig
from clipjax.interop import open_clip
from clipjax.interop.described import Description, Meaning, config_of
from clipjax.interop.layouts import linear, qkv_bias, qkv_kernel
from clipjax.interop.names import InteropError, Tensor, norm, weight_and_bias
from clipjax.interop.open_clip_parts import image_tower

IGNORED = rf"{open_clip.IGNORED}|.*\.(position|token_type)_ids"
# The name on the hub -> its rules: transformers' BertConfig, RobertaConfig and XLMRobertaConfig.
_ROBERTA = dict(pad_id=1, positions_after_padding=True, norm_eps=1e-5)
KINDS = {
    r"(FacebookAI/)?(xlm-)?roberta-(base|large)": _ROBERTA,
    r"(google-bert/)?bert-(base|large)-(un)?cased": dict(pad_id=0, norm_eps=1e-12),
}
# hf_pooler_type -> ours; only the first of them leaves BERT's pooler in the model.
POOLERS = {"cls_pooler": "pooler", "cls_last_hidden_state_pooler": "cls", "mean_pooler": "mean"}
PROJECTIONS = {"mlp": "mlp", "linear": "linear", None: "none"}


def tensors(model: ModelConfig) -> list[Tensor]:
    return [*open_clip.scalars(model), *text_tensors(model), *image_tower(model)]


def matches(description: Description) -> bool:
    model = description.files.get(open_clip.CONFIG, {}).get("model_cfg", {})
    hf, others = model.get("text_cfg", {}).get("hf_model_name"), model.get("vision_cfg", {}).get("timm_model_name")
    return bool(hf) and not others and "multimodal_cfg" not in model


def read(description: Description) -> Meaning:
    """Raises InteropError for a model, a pooler or a projection that is not known, or an image tower that is not."""
    model = config_of(description, open_clip.CONFIG)["model_cfg"]
    text = read_text(model["text_cfg"], description.shapes)
    return open_clip.read_around(description, open_clip.read_image(model), text)


def read_text(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> TextTowerConfig:
    """config: text_cfg; shapes of the tensors, by their names."""
    where, name = f"{open_clip.CONFIG}: text_cfg", config["hf_model_name"]
    rules = [rules for kind, rules in KINDS.items() if re.fullmatch(kind, name)]
    if not rules:
        raise InteropError(f"{where}.hf_model_name='{name}' is not known; known: {', '.join(KINDS)}.")
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
        raise InteropError(f"The text tower is no {name}: {error} is missing or misshapen.") from error
    return TextTowerConfig(
        name="bert",
        vocab_size=vocab_size,
        context_length=config.get("context_length", open_clip.TEXT["context_length"]),
        num_positions=num_positions,
        token_types=token_types,
        width=width,
        depth=len({name.split(".")[4] for name in shapes if name.startswith(f"{at}.encoder.layer.")}),
        num_heads=width // 64,
        mlp_dim=mlp_dim,
        causal=False,
        pool=POOLERS[pooler],
        pooler=pooler == "cls_pooler",
        projection=PROJECTIONS[projection],
        **rules[0],
    )


def text_tensors(model: ModelConfig) -> list[Tensor]:
    """The text half of a state dict, text.transformer.* and text.proj.*, for config.text.name="bert"."""
    text, at = model.text, "text.transformer.embeddings"
    tensors = [
        Tensor("text/token_embedding/embedding", (f"{at}.word_embeddings.weight",)),
        Tensor("text/position_embedding", (f"{at}.position_embeddings.weight",)),
        Tensor("text/token_type_embedding", (f"{at}.token_type_embeddings.weight",)),
        *norm("text/ln_embedding", f"{at}.LayerNorm"),
        *blocks("text.transformer"),
    ]
    if text.pooler:
        tensors += weight_and_bias("text/pooler", "text.transformer.pooler.dense", linear)
    if text.projection == "mlp":
        tensors += weight_and_bias("text/projection_hidden", "text.proj.0", linear, text.projection_bias)
        tensors += weight_and_bias("text/projection", "text.proj.2", linear, text.projection_bias)
    elif text.projection == "linear":
        tensors += weight_and_bias("text/projection", "text.proj", linear, text.projection_bias)
    return tensors


def blocks(theirs: str) -> list[Tensor]:
    at, layer = "text/block_{i}", f"{theirs}.encoder.layer.{{i}}"
    qkv = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
    return [
        Tensor(f"{at}/attention/qkv/kernel", tuple(f"{name}.weight" for name in qkv), qkv_kernel),
        Tensor(f"{at}/attention/qkv/bias", tuple(f"{name}.bias" for name in qkv), qkv_bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.attention.output.dense", linear),
        *norm(f"{at}/ln_1", f"{layer}.attention.output.LayerNorm"),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.intermediate.dense", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.output.dense", linear),
        *norm(f"{at}/ln_2", f"{layer}.output.LayerNorm"),
    ]
