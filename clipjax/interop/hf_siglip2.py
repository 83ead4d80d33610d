"""transformers' Siglip2Model: NaFlex of SigLIP 2. A fixed resolution of SigLIP 2 is a SiglipModel instead.

Names and defaults from transformers models/siglip2/{modeling,configuration}_siglip2.py. The tensors are SiglipModel's,
except the patch embedding, which is a linear map of flattened patches.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from clipjax.config import ModelConfig, PixelConfig
from clipjax.interop import hf_parts, hf_pixels, hf_siglip
from clipjax.interop.json_fields import square, whole_number
from clipjax.interop.layouts import linear
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor, config_of
from clipjax.models.towers.naflex import NaFlexConfig, naflex_of

PIXELS = PixelConfig(interpolation="bilinear")
PATCHES = 256  # patches per image at most, where no file gives the number


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    patches = "image/patch_embed/kernel"
    return [t._replace(layout=linear) if t.ours == patches else t for t in hf_siglip.tensors(model)]


def matches(description: Description) -> bool:
    """Whether config.json is a Siglip2Model's."""
    return description.files.get("config.json", {}).get("model_type") == "siglip2"


def read(description: Description) -> Meaning:
    """Raises InteropError for what hf_siglip refuses, or a grid of positions that is not square."""
    config = config_of(description, "config.json")
    vision = config.get("vision_config", {})
    patch = square(vision.get("patch_size", 16), "config.json: vision_config.patch_size")
    count = whole_number(vision.get("num_patches", 256), "config.json: vision_config.num_patches")
    side = math.isqrt(count)
    if side * side != count:
        raise InteropError(f"config.json: vision_config.num_patches={count}; expected a square number.")
    # The rest is read as SigLIP, whose images have a size.
    model = hf_siglip.read_model({**config, "vision_config": {**vision, "image_size": side * patch}})
    processor = hf_pixels.read_processor(description, hf_pixels.PATCHES)
    pixels, budget = hf_pixels.read_patches(processor, patch) if processor else (PIXELS, PATCHES)
    model = replace(model, image=naflex_of(model.image, max_patches=budget))
    return Meaning(model, pixels, hf_siglip.gemma(description))


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for a preset, which has its own number of patches."""
    processor = hf_pixels.read_processor(description, hf_pixels.PATCHES)
    return hf_pixels.read_patches(processor, model.image.patch_size)[0] if processor else PIXELS


def write(meaning: Meaning) -> dict[str, Any]:
    """config.json and preprocessor_config.json."""
    image, files = meaning.model.image, hf_siglip.write(meaning)
    config = files["config.json"]
    side = image.image_size // image.patch_size
    vision = {name: value for name, value in config["vision_config"].items() if name != "image_size"}
    config |= {
        "architectures": ["Siglip2Model"],
        "model_type": "siglip2",
        "vision_config": vision | dict(model_type="siglip2_vision_model", num_patches=side * side),
        "text_config": config["text_config"] | dict(model_type="siglip2_text_model"),
    }
    processor = hf_pixels.write_patches(meaning.pixels, image.patch_size, image.max_patches)
    return files | {hf_pixels.LEGACY: processor}


FAMILY = Family(
    tensors, matches, read, write=write, image=NaFlexConfig, pixels=PIXELS, read_pixels=read_pixels, **hf_parts.OPTIONS
)
