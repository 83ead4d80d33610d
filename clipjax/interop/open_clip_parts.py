"""The tables of OpenCLIP's own transformers, tower by tower. Names from open_clip transformer.py and coca_model.py."""

from __future__ import annotations

from clipjax.config import BlockConfig, ModelConfig
from clipjax.interop.layouts import in_proj_bias, in_proj_kernel, linear, patch_conv
from clipjax.interop.names import Tensor, norm, weight_and_bias


def image_tower(model: ModelConfig) -> list[Tensor]:
    """VisionTransformer, with or without ln_pre, LayerScale and attentional pooling."""
    image, theirs = model.image, "visual"
    tensors = [
        Tensor("image/cls_token", (f"{theirs}.class_embedding",)),
        Tensor("image/position_embedding", (f"{theirs}.positional_embedding",)),
        Tensor("image/patch_embed/kernel", (f"{theirs}.conv1.weight",), patch_conv(image.patch_size)),
        *(norm("image/ln_pre", f"{theirs}.ln_pre") if image.pre_norm else []),
        *blocks("image/block_{i}", theirs + ".transformer.resblocks.{i}", image),
        *norm("image/ln_post", f"{theirs}.ln_post"),
        Tensor("image/projection/kernel", (f"{theirs}.proj",)),
    ]
    if image.pool in ("attentional", "parallel", "cascade"):
        tensors += _pooler("image/pooler", f"{theirs}.attn_pool", fused=image.width == model.embed_dim)
    if image.pool in ("parallel", "cascade"):
        tensors += _pooler("image/contrastive_pooler", f"{theirs}.attn_pool_contrastive", fused=True)
    return tensors


def text_tower(model: ModelConfig, prefix: str) -> list[Tensor]:
    """TextTransformer; prefix: "" in CLIP, "text." in CustomTextCLIP and CoCa."""
    text = model.text
    projection = [Tensor("text/projection/kernel", (f"{prefix}text_projection",))]
    if text.projection == "none":
        projection = []
    elif text.projection_bias:
        projection = weight_and_bias("text/projection", f"{prefix}text_projection", linear)
    return [
        *([Tensor("text/cls_token", (f"{prefix}cls_emb",))] if text.pool == "cls" else []),
        Tensor("text/position_embedding", (f"{prefix}positional_embedding",)),
        Tensor("text/token_embedding/embedding", (f"{prefix}token_embedding.weight",)),
        *blocks("text/block_{i}", prefix + "transformer.resblocks.{i}", text),
        *norm("text/ln_final", f"{prefix}ln_final"),
        *projection,
    ]


def decoder() -> list[Tensor]:
    """CoCa's MultimodalTransformer."""
    theirs = "text_decoder"
    cross, at = "decoder/cross_block_{i}", theirs + ".cross_attn.{i}"
    return [
        *blocks("decoder/block_{i}", theirs + ".resblocks.{i}", BlockConfig()),
        *norm(f"{cross}/ln_1", f"{at}.ln_1"),
        *norm(f"{cross}/ln_context", f"{at}.ln_1_kv"),
        *_cross_attention(f"{cross}/attention", f"{at}.attn", fused=True),
        *norm(f"{cross}/ln_2", f"{at}.ln_2"),
        *_mlp(cross, at),
        *norm("decoder/ln_final", f"{theirs}.ln_final"),
        Tensor("decoder/vocabulary", (f"{theirs}.text_projection",)),
    ]


def blocks(ours: str, theirs: str, config: BlockConfig) -> list[Tensor]:
    """ResidualAttentionBlock, or CustomResidualAttentionBlock with scale_attn_inner and scale_fc."""
    return [
        *norm(f"{ours}/ln_1", f"{theirs}.ln_1"),
        Tensor(f"{ours}/attention/qkv/kernel", (f"{theirs}.attn.in_proj_weight",), in_proj_kernel),
        Tensor(f"{ours}/attention/qkv/bias", (f"{theirs}.attn.in_proj_bias",), in_proj_bias),
        *(norm(f"{ours}/attention/ln", f"{theirs}.attn.ln_inner") if config.attention_norm else []),
        *weight_and_bias(f"{ours}/attention/out", f"{theirs}.attn.out_proj", linear),
        *norm(f"{ours}/ln_2", f"{theirs}.ln_2"),
        *(norm(f"{ours}/mlp/ln", f"{theirs}.mlp.ln") if config.mlp_norm else []),
        *_mlp(ours, theirs),
        *(Tensor(f"{ours}/ls_{n}", (f"{theirs}.ls_{n}.gamma",)) for n in (1, 2) if config.layer_scale),
    ]


def _mlp(ours: str, theirs: str) -> list[Tensor]:
    return [
        *weight_and_bias(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc", linear),
        *weight_and_bias(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj", linear),
    ]


def _pooler(ours: str, theirs: str, *, fused: bool) -> list[Tensor]:
    return [
        Tensor(f"{ours}/queries", (f"{theirs}.query",)),
        *_cross_attention(f"{ours}/attention", f"{theirs}.attn", fused=fused),
        *norm(f"{ours}/ln_q", f"{theirs}.ln_q"),
        *norm(f"{ours}/ln_k", f"{theirs}.ln_k"),
    ]


def _cross_attention(ours: str, theirs: str, *, fused: bool) -> list[Tensor]:
    """torch.nn.MultiheadAttention; fused: keys and queries are equally wide, and PyTorch keeps one matrix."""
    tensors = []
    for i, name in enumerate(("query", "key", "value")):
        weight = f"{theirs}.in_proj_weight[{i}/3]" if fused else f"{theirs}.{name[0]}_proj_weight"
        tensors.append(Tensor(f"{ours}/{name}/kernel", (weight,), linear))
        tensors.append(Tensor(f"{ours}/{name}/bias", (f"{theirs}.in_proj_bias[{i}/3]",)))
    return tensors + weight_and_bias(f"{ours}/out", f"{theirs}.out_proj", linear)
