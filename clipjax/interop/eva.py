"""EVA-CLIP's tensors under both of their names: baaivision/EVA's own, and timm's inside OpenCLIP (visual.trunk)."""

from __future__ import annotations

from clipjax.config import ModelConfig
from clipjax.interop.layouts import in_proj_kernel, linear, patch_conv, qkv_bias, qkv_kernel, reshape
from clipjax.interop.names import Tensor, norm, weight_and_bias
from clipjax.interop.open_clip_parts import text_tower

# What timm's trunk calls it -> what the original calls it (rei/eva_clip/eva_vit_model.py).
ORIGINAL = {
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
    "attn.norm": "attn.inner_attn_ln",
    "mlp.fc1_g": "mlp.w1",
    "mlp.fc1_x": "mlp.w2",
    "mlp.norm": "mlp.ffn_ln",
    "mlp.fc2": "mlp.w3",
}
IGNORED = r".*rope\.freqs_(cos|sin)|.*\.rope\..*|text\.attn_mask"  # tables that positions are computed from


def timm_tensors(model: ModelConfig) -> list[Tensor]:
    """open_clip's EVA01-* and EVA02-* over timm's eva trunks."""
    return _tensors(model, "visual.trunk", {})


def original_tensors(model: ModelConfig) -> list[Tensor]:
    """EVA_CLIP_*.pt and EVA01/02_CLIP_*.pt of baaivision/EVA."""
    return _tensors(model, "visual", ORIGINAL)


def _tensors(model: ModelConfig, theirs: str, renamed: dict[str, str]) -> list[Tensor]:
    image = model.image
    ours, at = "image/block_{i}", theirs + ".blocks.{i}"
    separate = image.attention_norm  # sub-LN came with q, k and v apart
    gated, fused_gate = image.mlp == "swiglu", image.mlp == "swiglu" and not image.mlp_norm and not renamed

    def name(part: str) -> str:
        # The original's MLP without a gate is fc1 and fc2 too.
        return f"{at}.{renamed.get(part, part)}" if gated or not part.startswith("mlp.fc") else f"{at}.{part}"

    def scale(ours: str, theirs: str) -> list[Tensor]:
        return norm(ours, theirs)[: 1 if image.norm == "rms" else 2]

    def bias(part: str) -> str:
        return name(f"attn.{part}_proj.bias") if separate else f"{at}.attn.{part}_bias"

    weights = tuple(f"{at}.attn.{part}_proj.weight" for part in "qkv")
    qkv = Tensor(f"{ours}/attention/qkv/kernel", (f"{at}.attn.qkv.weight",), in_proj_kernel)
    if separate:
        qkv = Tensor(f"{ours}/attention/qkv/kernel", weights, qkv_kernel)
    tensors = [
        Tensor("logit_scale", ("logit_scale",)),
        *text_tower(model, "text."),
        Tensor("image/cls_token", (f"{theirs}.cls_token",), reshape((-1,), (1, 1, -1))),
        Tensor("image/position_embedding", (f"{theirs}.pos_embed",), reshape((-1, image.width), (1, -1, image.width))),
        *weight_and_bias("image/patch_embed", f"{theirs}.patch_embed.proj", patch_conv(image.patch_size)),
        *scale(f"{ours}/ln_1", f"{at}.norm1"),
        qkv,
        *([Tensor(f"{ours}/attention/qkv/bias", (bias("q"), bias("v")), qkv_bias)] if image.qkv_bias == "qv" else []),
        *(scale(f"{ours}/attention/ln", name("attn.norm")) if image.attention_norm else []),
        *weight_and_bias(f"{ours}/attention/out", f"{at}.attn.proj", linear),
        *scale(f"{ours}/ln_2", f"{at}.norm2"),
    ]
    if fused_gate:
        for i, part in enumerate(("gate", "up")):
            tensors.append(Tensor(f"{ours}/mlp/{part}/kernel", (f"{at}.mlp.fc1.weight[{i}/2]",), linear))
            tensors.append(Tensor(f"{ours}/mlp/{part}/bias", (f"{at}.mlp.fc1.bias[{i}/2]",)))
    elif gated:
        tensors += weight_and_bias(f"{ours}/mlp/gate", name("mlp.fc1_g"), linear)
        tensors += weight_and_bias(f"{ours}/mlp/up", name("mlp.fc1_x"), linear)
    else:
        tensors += weight_and_bias(f"{ours}/mlp/up", name("mlp.fc1"), linear)
    return [
        *tensors,
        *(scale(f"{ours}/mlp/ln", name("mlp.norm")) if image.mlp_norm else []),
        *weight_and_bias(f"{ours}/mlp/down", name("mlp.fc2"), linear),
        *scale("image/ln_post", f"{theirs}.norm"),
        *weight_and_bias("image/projection", f"{theirs}.head", linear),
    ]
