"""Text towers that open_clip takes from transformers (BERT, RoBERTa, XLM-R): names from open_clip hf_model.py."""

from __future__ import annotations

from clipjax.config import ModelConfig
from clipjax.interop.layouts import linear, qkv_bias, qkv_kernel
from clipjax.interop.names import Tensor, norm, weight_and_bias


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
