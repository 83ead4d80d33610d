"""SigLIP in OpenCLIP: timm's image tower under "visual.trunk", OpenCLIP's text tower under "text".

Names from open_clip timm_model.py and timm vision_transformer.py (AttentionPoolLatent). SigLIP was trained with the
approximate GELU, and both libraries often compute the exact one. clipjax computes what the file says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipjax.config import ModelConfig, PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import open_clip, open_clip_config, timm_trunks, tokenizer_files
from clipjax.interop.config_files import timm_name
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor
from clipjax.interop.open_clip_parts import text_tower
from clipjax.interop.open_clip_timm import trunk
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
    return [*open_clip.scalars(model), *trunk(model), *text_tower(model, "text.")]


def matches(description: Description) -> bool:
    """Whether the configuration names one of timm's SigLIP image towers, and the file has it."""
    model = description.files.get(open_clip.CONFIG, {}).get("model_cfg", {})
    named = is_siglip(model.get("vision_cfg", {})) and not model.get("text_cfg", {}).get("hf_model_name")
    return named and any(name.startswith("visual.trunk.") for name in description.shapes)


def is_siglip(vision: Mapping[str, Any]) -> bool:
    """Whether vision_cfg names one of timm's SigLIP image towers."""
    return bool(NAME.fullmatch(timm_name(vision)))


def read(description: Description) -> Meaning:
    """Raises InteropError for an image tower that is none of timm's SigLIP models."""
    model = open_clip_config.model_cfg(description)
    image, text, bias = read_image(model), model["text_cfg"], model.get("init_logit_bias")
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


def read_image(model: Mapping[str, Any]) -> ViTConfig:
    """The image tower of model_cfg. Raises InteropError where it is none of timm's SigLIP models."""
    vision, where = model["vision_cfg"], f"{open_clip.CONFIG}: vision_cfg"
    match = NAME.fullmatch(timm_name(vision))
    if not match or match[1] not in SIZES or vision.get("timm_proj") != "none" or vision.get("timm_pool") != "map":
        raise InteropError(
            f"{where} has timm_model_name={vision.get('timm_model_name')!r}, timm_pool={vision.get('timm_pool')!r} and "
            f"timm_proj={vision.get('timm_proj')!r}. Expected one of timm's SigLIP models, such as "
            f"vit_base_patch16_siglip_224 (sizes: {', '.join(SIZES)}), timm_pool 'map' and timm_proj 'none'."
        )
    timm_trunks.check_image_size(vision, int(match[3]))
    open_clip_config.refuse_others(vision, dict(patch_dropout=0.0), where)
    width, depth, heads, mlp_dim = SIZES[match[1]]
    return ViTConfig(
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
        drop_path=timm_trunks.drop_path(vision),
    )


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    return open_clip_config.read_pixels(description, model.image.image_size, PIXELS)


def write(meaning: Meaning) -> dict[str, Any]:
    """open_clip_config.json. A tower that timm has no name for is refused when it is read back."""
    text = open_clip.write_text(meaning.model)
    return open_clip.write_around(meaning, write_image(meaning.model.image), text, custom_text=True)


def write_image(image: ViTConfig) -> dict[str, Any]:
    """vision_cfg."""
    size = next((name for name, sizes in SIZES.items() if sizes[0] == image.width), "unknown")
    name = f"vit_{size}_patch{image.patch_size}_siglip_{image.image_size}"
    # timm's SigLIP models drop no patches, and it matters to training alone.
    return timm_trunks.write(name, replace(image, patch_dropout=0.0), timm_pool="map", timm_proj="none")


FAMILY = Family(
    tensors,
    matches,
    read,
    write=write,
    renamed=open_clip.prefixed,
    **open_clip.OPTIONS | dict(pixels=PIXELS, read_pixels=read_pixels),
)
