"""SigLIP in OpenCLIP: timm's image tower under "visual.trunk", OpenCLIP's text tower under "text".

Names from open_clip timm_model.py and timm vision_transformer.py (AttentionPoolLatent). SigLIP was trained with the
approximate GELU, and both libraries often compute the exact one. clipjax computes what the file says.
"""

from __future__ import annotations

import math
import re
from typing import Any

from clipjax.config import ModelConfig, PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import open_clip, open_clip_config, tokenizer_files
from clipjax.interop.config_files import timm_name
from clipjax.interop.json_fields import square
from clipjax.interop.layouts import in_proj_bias, in_proj_kernel, linear, patch_conv, reshape
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor, norm, weight_and_bias
from clipjax.interop.open_clip_parts import text_tower
from clipjax.models.towers.vit import ViTConfig

# The size in timm's names -> (width, depth, heads, mlp_dim).
SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# timm's models with the approximate GELU. Its other SigLIP models have the exact one.
TANH = (
    "vit_base_patch32_siglip_256",
    "vit_large_patch16_siglip_512",
    "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384",
    "vit_so400m_patch16_siglip_512",
    "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384",
)
PIXELS = PIXEL_PRESETS["siglip_hf"]
NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)")


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    width = model.image.width
    trunk, at, layer = "visual.trunk", "image/block_{i}", "visual.trunk.blocks.{i}"
    pool, ours = f"{trunk}.attn_pool", "image/map_head"
    return [
        *open_clip.scalars(model),
        Tensor("image/position_embedding", (f"{trunk}.pos_embed",), reshape((-1, width), (1, -1, width))),
        *weight_and_bias("image/patch_embed", f"{trunk}.patch_embed.proj", patch_conv(model.image.patch_size)),
        *norm(f"{at}/ln_1", f"{layer}.norm1"),
        Tensor(f"{at}/attention/qkv/kernel", (f"{layer}.attn.qkv.weight",), in_proj_kernel),
        Tensor(f"{at}/attention/qkv/bias", (f"{layer}.attn.qkv.bias",), in_proj_bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.attn.proj", linear),
        *norm(f"{at}/ln_2", f"{layer}.norm2"),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.mlp.fc1", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.mlp.fc2", linear),
        *norm("image/ln_post", f"{trunk}.norm"),
        Tensor(f"{ours}/probe", (f"{pool}.latent",), reshape((-1,), (1, 1, -1))),
        *weight_and_bias(f"{ours}/attention/query", f"{pool}.q", linear),
        *(
            tensor
            for i, name in enumerate(("key", "value"))
            for tensor in (
                Tensor(f"{ours}/attention/{name}/kernel", (f"{pool}.kv.weight[{i}/2]",), linear),
                Tensor(f"{ours}/attention/{name}/bias", (f"{pool}.kv.bias[{i}/2]",)),
            )
        ),
        *weight_and_bias(f"{ours}/attention/out", f"{pool}.proj", linear),
        *norm(f"{ours}/ln", f"{pool}.norm"),
        *weight_and_bias(f"{ours}/mlp/up", f"{pool}.mlp.fc1", linear),
        *weight_and_bias(f"{ours}/mlp/down", f"{pool}.mlp.fc2", linear),
        *text_tower(model, "text."),
    ]


def matches(description: Description) -> bool:
    """Whether the configuration names one of timm's SigLIP image towers, and the file has it."""
    vision = description.files.get(open_clip.CONFIG, {}).get("model_cfg", {}).get("vision_cfg", {})
    return bool(NAME.fullmatch(timm_name(vision))) and any(
        name.startswith("visual.trunk.") for name in description.shapes
    )


def read(description: Description) -> Meaning:
    """Raises InteropError for an image tower that is none of timm's SigLIP models."""
    model, where = open_clip_config.model_cfg(description), f"{open_clip.CONFIG}: vision_cfg"
    vision, text = model["vision_cfg"], model["text_cfg"]
    match = NAME.fullmatch(timm_name(vision))
    if not match or match[1] not in SIZES or vision.get("timm_proj") != "none" or vision.get("timm_pool") != "map":
        raise InteropError(
            f"{where} {vision} is none of timm's SigLIP models. Expected a timm_model_name "
            f"such as vit_base_patch16_siglip_224 (sizes: {', '.join(SIZES)}), timm_pool 'map' and timm_proj 'none'."
        )
    if square(vision.get("image_size", 224), f"{where}.image_size") != int(match[3]):
        raise InteropError(
            f"{where}.image_size={vision.get('image_size', 224)!r}; {match[0]} takes images of {match[3]}."
        )
    open_clip_config.refuse_others(vision, dict(patch_dropout=0.0), where)
    width, depth, heads, mlp_dim = SIZES[match[1]]
    image = ViTConfig(
        image_size=int(match[3]),
        patch_size=int(match[2]),
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=mlp_dim,
        pool="map",
        pre_norm=False,
        patch_bias=True,
        projection=False,
        activation="gelu_tanh" if match[0] in TANH else "gelu",
        norm_eps=1e-6,
        init="big_vision",
        drop_path=float(vision.get("timm_drop_path") or 0.0),
    )
    bias = model.get("init_logit_bias")
    return Meaning(
        ModelConfig(
            image=image,
            text=open_clip.read_text(model, text),
            embed_dim=model["embed_dim"],
            logit_scale_init=math.exp(model.get("init_logit_scale", math.log(10))),
            logit_scale_max=0.0,
            logit_bias_init=None if bias is None else float(bias),
        ),
        open_clip_config.read_pixels(description, image.image_size, PIXELS),
        tokenizer_files.open_clip(text, description.beside),
    )


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    return open_clip_config.read_pixels(description, model.image.image_size, PIXELS)


def write(meaning: Meaning) -> dict[str, Any]:
    """open_clip_config.json. A tower that timm has no name for is refused when it is read back."""
    image = meaning.model.image
    size = next((name for name, sizes in SIZES.items() if sizes[0] == image.width), "unknown")
    vision = dict(
        image_size=image.image_size,
        timm_model_name=f"vit_{size}_patch{image.patch_size}_siglip_{image.image_size}",
        timm_model_pretrained=False,
        timm_pool="map",
        timm_proj="none",
        **({"timm_drop_path": image.drop_path} if image.drop_path else {}),
    )
    return open_clip.write_around(meaning, vision, open_clip.write_text(meaning.model), custom_text=True)


FAMILY = Family(tensors, matches, read, write=write, **open_clip.OPTIONS | dict(pixels=PIXELS, read_pixels=read_pixels))
