"""OpenCLIP with one of timm's ViTs as the image tower: PE-Core, MobileCLIP-B and MobileCLIP2-L, CLIP's and plain ViTs.

Names from open_clip timm_model.py and timm vision_transformer.py, vision_transformer_hybrid.py and eva.py. The settings
of a trunk follow from its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from clipjax.config import ModelConfig, PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import open_clip, open_clip_config, timm_trunks
from clipjax.interop.conv_towers import conv_and_norm
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
    own_head: bool = False  # whether OpenCLIP's own linear map after it (timm_proj 'linear') is read too


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
            shape = dict(width=width, depth=depth, num_heads=heads, mlp_dim=mlp_dim)
            image = ViTConfig(image_size=image_size, patch_size=patch, projection_bias=True, **shape)
            yield f"vit_{size}_patch{patch}_clip_{image_size}", Trunk(image, own_head=True)
            if name in quick.get(size, "").split():
                other = replace(image, activation="quick_gelu")
                yield f"vit_{size}_patch{patch}_clip_quickgelu_{image_size}", Trunk(other, own_head=True)


def _plain_trunks() -> Iterator[tuple[str, Trunk]]:
    """timm's ViTs of the original paper, as in BiomedCLIP."""
    sizes = {
        "tiny": ((192, 12, 3), "16_224 16_384"),
        "small": ((384, 12, 6), "32_224 32_384 16_224 16_384 8_224"),
        "base": ((768, 12, 12), "32_224 32_384 16_224 16_384 8_224"),
        "large": ((1024, 24, 16), "32_224 32_384 16_224 16_384 14_224"),
        "huge": ((1280, 32, 16), "14_224"),
    }
    for size, ((width, depth, heads), names) in sizes.items():
        for name in names.split():
            patch, image_size = map(int, name.split("_"))
            shape = dict(width=width, depth=depth, num_heads=heads, mlp_dim=4 * width)
            settings = dict(pre_norm=False, patch_bias=True, norm_eps=1e-6, projection_bias=True)
            image = ViTConfig(image_size=image_size, patch_size=patch, **shape, **settings)
            yield f"vit_{size}_patch{patch}_{image_size}", Trunk(image, own_head=True)


def _gap_trunks() -> Iterator[tuple[str, Trunk]]:
    """timm's ViTs without a class token and without a bias of queries, keys and values, with LayerScale."""
    for image_size in (240, 256, 384):
        image = ViTConfig(
            image_size=image_size,
            patch_size=16,
            width=512,
            depth=12,
            num_heads=8,
            mlp_dim=2048,
            pool="gap",
            qkv_bias="none",
            layer_scale=1e-6,
            pre_norm=False,
            patch_bias=True,
            norm_eps=1e-6,
            projection_bias=True,
        )
        yield f"vit_medium_patch16_gap_{image_size}", Trunk(image, "avg", own_head=True)


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
    **dict(_plain_trunks()),
    **dict(_gap_trunks()),
}


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    return [*open_clip.scalars(model), *trunk(model), *text_tower(model, "text.")]


def trunk(model: ModelConfig, theirs: str = "visual.trunk") -> list[Tensor]:
    """timm's VisionTransformer, with a class token, a pool "map" and a head where the model has them."""
    image, at, layer = model.image, "image/block_{i}", theirs + ".blocks.{i}"
    has_class, has_bias = image.pool == "cls" or image.class_token, image.qkv_bias == "qkv"
    return [
        *([Tensor("image/cls_token", (f"{theirs}.cls_token",), reshape((-1,), (1, 1, -1)))] if has_class else []),
        Tensor("image/position_embedding", (f"{theirs}.pos_embed",), reshape((-1, image.width), (1, -1, image.width))),
        *_patches(image, f"{theirs}.patch_embed"),
        *(norm("image/ln_pre", f"{theirs}.norm_pre") if image.pre_norm else []),
        *norm(f"{at}/ln_1", f"{layer}.norm1"),
        Tensor(f"{at}/attention/qkv/kernel", (f"{layer}.attn.qkv.weight",), in_proj_kernel),
        *([Tensor(f"{at}/attention/qkv/bias", (f"{layer}.attn.qkv.bias",), in_proj_bias)] if has_bias else []),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.attn.proj", linear),
        *norm(f"{at}/ln_2", f"{layer}.norm2"),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.mlp.fc1", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.mlp.fc2", linear),
        *(Tensor(f"{at}/ls_{n}", (f"{layer}.ls{n}.gamma",)) for n in (1, 2) if image.layer_scale),
        *norm("image/ln_post", f"{theirs}.norm"),
        *(_map_head("image/map_head", f"{theirs}.attn_pool") if image.pool == "map" else []),
        *(_head(image, theirs) if image.projection else []),
    ]


def _head(image: ViTConfig, theirs: str) -> list[Tensor]:
    """timm's own, which has a bias, or OpenCLIP's after the trunk."""
    name = f"{theirs}.head" if image.projection_bias else theirs.replace("trunk", "head.proj")
    return weight_and_bias("image/projection", name, linear, image.projection_bias)


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
    return timm_trunks.named(description) in TRUNKS


def read(description: Description) -> Meaning:
    """Raises InteropError for a pool, a head or an image size that the trunk does not have in a published model."""
    model = open_clip_config.model_cfg(description)
    image, pixels = read_image(model)
    return open_clip.read_around(description, image, open_clip.read_text(model, model.get("text_cfg", {})), pixels)


def read_image(model: Mapping[str, Any]) -> tuple[ViTConfig, PixelConfig]:
    """(image tower of model_cfg, how images are prepared where no file says it). Raises InteropError as `read` does."""
    vision, where = model["vision_cfg"], timm_trunks.WHERE
    image, pool, pixels, own_head = timm_trunks.known(vision, TRUNKS)
    found = dict(timm_pool=vision.get("timm_pool", "avg"), timm_proj=vision.get("timm_proj", "linear") or None)
    if own_head and found["timm_proj"] == "linear" and found["timm_pool"] in ("token", "", None, "avg"):
        open_clip_config.refuse_others(vision, dict(timm_proj_bias=False, timm_drop=0.0), where)
        image = replace(image, projection_bias=False)
        if found["timm_pool"] == "avg":  # without one, the trunk's own
            image = replace(image, pool="gap", class_token=image.pool == "cls")
    elif found != dict(timm_pool=pool, timm_proj=None):
        raise InteropError(f"{where} has {found}; expected timm_pool '{pool}' and timm_proj null for this trunk.")
    return timm_trunks.with_dropouts(image, vision), pixels


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    known = [trunk.pixels for trunk in TRUNKS.values() if computed_fields(trunk.image) == computed_fields(model.image)]
    default = known[0] if known else open_clip.PIXELS
    return open_clip_config.read_pixels(description, model.image.image_size, default)


def write(meaning: Meaning) -> dict[str, Any]:
    """Raises InteropError for a trunk that timm has no name for."""
    vision = write_image(meaning.model.image)
    return open_clip.write_around(meaning, vision, open_clip.write_text(meaning.model), custom_text=True)


def write_image(image: ViTConfig) -> dict[str, Any]:
    """vision_cfg. Raises InteropError for a trunk that timm has no name for."""
    own_head = image.projection and not image.projection_bias
    like = replace(image, projection_bias=True) if own_head else image  # the trunk's own head, which OpenCLIP replaces
    if own_head and image.class_token:
        like = replace(like, pool="cls", class_token=False)
    names = [name for name, trunk in TRUNKS.items() if computed_fields(trunk.image) == computed_fields(like)]
    if not names or (own_head and not TRUNKS[names[0]].own_head):
        raise InteropError("config.model.image is none of the ViTs that timm has a name for.")
    head = dict(timm_pool=TRUNKS[names[0]].pool, timm_proj=None)
    if own_head:
        head = dict(timm_pool="avg" if image.pool == "gap" else "token", timm_proj="linear")
    return timm_trunks.write(names[0], image, **head)


FAMILY = Family(
    tensors,
    matches,
    read,
    write=write,
    renamed=open_clip.prefixed,
    **open_clip.OPTIONS | dict(read_pixels=read_pixels),
)
