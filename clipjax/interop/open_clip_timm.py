"""OpenCLIP with one of timm's ViTs as the image tower: PE-Core, MobileCLIP-B and MobileCLIP2-L, timm's CLIP ViTs.

Names from open_clip timm_model.py and timm vision_transformer.py, vision_transformer_hybrid.py and eva.py. The settings
of a trunk follow from its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from clipjax.config import ModelConfig, PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import open_clip, open_clip_config
from clipjax.interop.conv_towers import conv_and_norm
from clipjax.interop.json_fields import square
from clipjax.interop.layouts import conv, in_proj_bias, in_proj_kernel, linear, patch_conv, reshape
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
from clipjax.interop.open_clip_parts import text_tower
from clipjax.models.presets.timm import TIMM_PRESETS
from clipjax.models.towers.conv_stem_vit import ConvStemViTConfig
from clipjax.models.towers.vit import ViTConfig


class Trunk(NamedTuple):
    """One of timm's models, as OpenCLIP uses it."""

    image: ViTConfig
    pool: str = "token"  # timm_pool
    pixels: PixelConfig = open_clip.PIXELS  # where no file says how images are prepared


def _clip_trunks() -> Iterator[tuple[str, Trunk]]:
    """timm's ViTs of CLIP, with the exact GELU and with QuickGELU."""
    sizes = {
        "xsmall": ((256, 10, 4, 1024), "16_224"),
        "medium": ((512, 12, 8, 2048), "32_224 16_224"),
        "betwixt": ((640, 12, 10, 2560), "32_224"),
        "base": ((768, 12, 12, 3072), "32_224 32_256 32_384 32_448 16_224 16_384"),
        "large": ((1024, 24, 16, 4096), "14_224 14_336"),
        "huge": ((1280, 32, 16, 5120), "14_224 14_336 14_378"),
        "giant": ((1408, 40, 16, 6144), "14_224"),
        "gigantic": ((1664, 48, 16, 8192), "14_224 14_378"),
    }
    quick = {"base": "32_224 16_224", "large": "14_224 14_336", "huge": "14_224 14_378", "gigantic": "14_224"}
    for size, ((width, depth, heads, mlp_dim), names) in sizes.items():
        for name in names.split():
            patch, image_size = map(int, name.split("_"))
            image = ViTConfig(
                image_size=image_size,
                patch_size=patch,
                width=width,
                depth=depth,
                num_heads=heads,
                mlp_dim=mlp_dim,
                projection_bias=True,
            )
            yield f"vit_{size}_patch{patch}_clip_{image_size}", Trunk(image)
            if name in quick.get(size, "").split():
                other = replace(image, activation="quick_gelu")
                yield f"vit_{size}_patch{patch}_clip_quickgelu_{image_size}", Trunk(other)


def _pe_core(preset: str) -> Trunk:
    return Trunk(TIMM_PRESETS[preset].image, "map", replace(PIXEL_PRESETS["siglip2_hf"], alpha="drop"))


# timm's name -> the trunk.
TRUNKS: dict[str, Trunk] = {
    "vit_pe_core_tiny_patch16_384": _pe_core("pe_core_t16_384"),
    "vit_pe_core_small_patch16_384": _pe_core("pe_core_s16_384"),
    "vit_pe_core_base_patch16_224": _pe_core("pe_core_b16_224"),
    "vit_pe_core_large_patch14_336": _pe_core("pe_core_l14_336"),
    "vit_pe_core_gigantic_patch14_448": _pe_core("pe_core_g14_448"),
    "vit_base_mci_224": Trunk(TIMM_PRESETS["mobileclip_b"].image, pixels=PIXEL_PRESETS["mobileclip"]),
    **dict(_clip_trunks()),
}


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    return [*open_clip.scalars(model), *trunk(model), *text_tower(model, "text.")]


def trunk(model: ModelConfig, theirs: str = "visual.trunk") -> list[Tensor]:
    """timm's VisionTransformer, with a class token, a pool "map" and a head where the model has them."""
    image, at, layer = model.image, "image/block_{i}", theirs + ".blocks.{i}"
    has_class = image.pool == "cls" or image.class_token
    return [
        *([Tensor("image/cls_token", (f"{theirs}.cls_token",), reshape((-1,), (1, 1, -1)))] if has_class else []),
        Tensor("image/position_embedding", (f"{theirs}.pos_embed",), reshape((-1, image.width), (1, -1, image.width))),
        *_patches(image, f"{theirs}.patch_embed"),
        *(norm("image/ln_pre", f"{theirs}.norm_pre") if image.pre_norm else []),
        *norm(f"{at}/ln_1", f"{layer}.norm1"),
        Tensor(f"{at}/attention/qkv/kernel", (f"{layer}.attn.qkv.weight",), in_proj_kernel),
        Tensor(f"{at}/attention/qkv/bias", (f"{layer}.attn.qkv.bias",), in_proj_bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.attn.proj", linear),
        *norm(f"{at}/ln_2", f"{layer}.norm2"),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.mlp.fc1", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.mlp.fc2", linear),
        *norm("image/ln_post", f"{theirs}.norm"),
        *(_map_head("image/map_head", f"{theirs}.attn_pool") if image.pool == "map" else []),
        *(weight_and_bias("image/projection", f"{theirs}.head", linear) if image.projection else []),
    ]


def _patches(image: ViTConfig, theirs: str) -> list[Tensor]:
    if not isinstance(image, ConvStemViTConfig):
        return weight_and_bias("image/patch_embed", f"{theirs}.proj", patch_conv(image.patch_size), image.patch_bias)
    tensors, last = [], len(image.stem_strides)
    for i in range(1, last):
        at = f"{theirs}.backbone.{i - 1}"
        tensors += conv_and_norm(f"conv_{i}", f"bn_{i}", f"{at}.conv", f"{at}.bn")
    return [*tensors, *weight_and_bias(f"image/conv_{last}", f"{theirs}.backbone.{last - 1}.conv", conv)]


def _map_head(ours: str, theirs: str) -> list[Tensor]:
    """AttentionPoolLatent."""
    tensors = [
        Tensor(f"{ours}/probe", (f"{theirs}.latent",), reshape((-1,), (1, 1, -1))),
        *weight_and_bias(f"{ours}/attention/query", f"{theirs}.q", linear),
    ]
    for i, name in enumerate(("key", "value")):
        tensors.append(Tensor(f"{ours}/attention/{name}/kernel", (f"{theirs}.kv.weight[{i}/2]",), linear))
        tensors.append(Tensor(f"{ours}/attention/{name}/bias", (f"{theirs}.kv.bias[{i}/2]",)))
    return [
        *tensors,
        *weight_and_bias(f"{ours}/attention/out", f"{theirs}.proj", linear),
        *norm(f"{ours}/ln", f"{theirs}.norm"),
        *weight_and_bias(f"{ours}/mlp/up", f"{theirs}.mlp.fc1", linear),
        *weight_and_bias(f"{ours}/mlp/down", f"{theirs}.mlp.fc2", linear),
    ]


def matches(description: Description) -> bool:
    """Whether OpenCLIP's configuration names one of TRUNKS."""
    return _name(description.files.get(open_clip.CONFIG, {}).get("model_cfg", {}).get("vision_cfg", {})) in TRUNKS


def read(description: Description) -> Meaning:
    """Raises InteropError for a pool, a head or an image size that the trunk does not have in a published model."""
    model, where = open_clip_config.model_cfg(description), f"{open_clip.CONFIG}: vision_cfg"
    vision = model["vision_cfg"]
    name = _name(vision)
    if name not in TRUNKS:
        raise InteropError(f"{where}.timm_model_name='{name}' is unknown. Known: {', '.join(TRUNKS)}.")
    image, pool, pixels = TRUNKS[name]
    found = dict(timm_pool=vision.get("timm_pool", "avg"), timm_proj=vision.get("timm_proj", "linear") or None)
    if found != dict(timm_pool=pool, timm_proj=None):
        raise InteropError(f"{where} has {found}; expected timm_pool '{pool}' and timm_proj null for {name}.")
    size = vision.get("image_size", 224)
    if square(size, f"{where}.image_size") != image.image_size:
        raise InteropError(f"{where}.image_size={size}; {name} takes images of {image.image_size}.")
    drops = dict(patch_dropout=vision.get("patch_dropout", 0.0), drop_path=float(vision.get("timm_drop_path") or 0.0))
    text = open_clip.read_text(model, model.get("text_cfg", {}))
    return open_clip.read_around(description, replace(image, **drops), text, pixels)


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    known = [trunk.pixels for trunk in TRUNKS.values() if computed_fields(trunk.image) == computed_fields(model.image)]
    default = known[0] if known else open_clip.PIXELS
    return open_clip_config.read_pixels(description, model.image.image_size, default)


def write(meaning: Meaning) -> dict[str, Any]:
    """Raises InteropError for a trunk that timm has no name for."""
    image = meaning.model.image
    names = [name for name, trunk in TRUNKS.items() if computed_fields(trunk.image) == computed_fields(image)]
    if not names:
        raise InteropError("config.model.image is none of the ViTs that timm has a name for.")
    vision = dict(image_size=image.image_size, timm_model_name=names[0], timm_model_pretrained=False)
    vision |= dict(timm_pool=TRUNKS[names[0]].pool, timm_proj=None)
    vision |= {"patch_dropout": image.patch_dropout} if image.patch_dropout else {}
    vision |= {"timm_drop_path": image.drop_path} if image.drop_path else {}
    return open_clip.write_around(meaning, vision, open_clip.write_text(meaning.model), custom_text=True)


def _name(vision: Mapping[str, Any]) -> str:
    """timm_model_name without the tag of its weights: "vit_base_mci_224.apple_mclip"."""
    return str(vision.get("timm_model_name") or "").partition(".")[0]


FAMILY = Family(tensors, matches, read, write=write, **open_clip.OPTIONS | dict(read_pixels=read_pixels))
