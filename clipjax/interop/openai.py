"""OpenAI's own files: OpenCLIP's names without a configuration. From openai/CLIP clip/model.py (build_model).

Sizes are read from the tensors. Their code fixes the rest: QuickGELU, heads 64 wide, MLPs four times as wide as the
tower, and the largest id as the end of a text. An export is a state dict for clip.load and open_clip's
load_openai_model, which round the matrices to half precision themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipjax.config import ModelConfig
from clipjax.interop import open_clip, open_clip_conv, tokenizer_files
from clipjax.interop.names import Description, Family, InteropError, Meaning
from clipjax.interop.open_clip import PIXELS, renamed
from clipjax.models.towers.resnet import ResNetConfig
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig

NUMBERS = ("input_resolution", "context_length", "vocab_size")  # only OpenAI's files have them among the weights
VIT_ONLY, RESNET_ONLY = "visual.class_embedding", "visual.layer1.0.conv1.weight"
Shapes = Mapping[str, tuple[int, ...]]


def matches(description: Description) -> bool:
    """Whether these are OpenAI's files of a ViT."""
    return all(name in description.shapes for name in (*NUMBERS, VIT_ONLY))


def matches_resnet(description: Description) -> bool:
    """Whether these are OpenAI's files of a ResNet."""
    return all(name in description.shapes for name in (*NUMBERS, RESNET_ONLY))


def read(description: Description) -> Meaning:
    """A ViT from its sizes. Raises InteropError where tensors are missing."""
    return _read(description, _vit)


def read_resnet(description: Description) -> Meaning:
    """A ResNet from its sizes. Raises InteropError where tensors are missing."""
    return _read(description, _resnet)


def write(meaning: Meaning) -> dict[str, Any]:
    """No files. Their code prepares images in one way, which export.py compares."""
    return {}


def numbers(model: ModelConfig) -> dict[str, np.ndarray]:
    """name -> int64 scalar: the numbers that OpenAI's files have among the weights."""
    values = model.image.image_size, model.text.context_length, model.text.vocab_size
    return {name: np.array(value, np.int64) for name, value in zip(NUMBERS, values, strict=True)}


def _read(description: Description, image_tower: Any) -> Meaning:
    shapes = {renamed(name): shape for name, shape in description.shapes.items()}
    try:
        image = image_tower(shapes)
        (context, width), (_, embed_dim) = shapes["positional_embedding"], shapes["text_projection"]
        text = TextTransformerConfig(
            vocab_size=shapes["token_embedding.weight"][0],
            context_length=context,
            width=width,
            depth=_count(shapes, "transformer.", "ln_1.weight"),
            num_heads=width // 64,
            mlp_dim=4 * width,
            activation="quick_gelu",
        )
    except (KeyError, ValueError) as error:
        raise InteropError(f"This is not a CLIP of OpenAI's: {error} is missing or has another shape.") from error
    return Meaning(
        ModelConfig(image=image, text=text, embed_dim=embed_dim), PIXELS, tokenizer_files.openai(description.beside)
    )


def _vit(shapes: Shapes) -> ViTConfig:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    positions, _ = shapes["visual.positional_embedding"]
    return ViTConfig(
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        width=width,
        depth=_count(shapes, "visual.transformer.", "ln_1.weight"),
        num_heads=width // 64,
        mlp_dim=4 * width,
        activation="quick_gelu",
    )


def _resnet(shapes: Shapes) -> ResNetConfig:
    width, _, _, _ = shapes[RESNET_ONLY]
    positions, _ = shapes["visual.attnpool.positional_embedding"]
    return ResNetConfig(
        image_size=32 * math.isqrt(positions - 1),
        stages=tuple(_count(shapes, f"visual.layer{stage}.", "conv1.weight") for stage in (1, 2, 3, 4)),
        width=width,
        num_heads=32 * width // 64,
    )


def _count(shapes: Shapes, prefix: str, suffix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(suffix) for name in shapes)


_OPTIONS = open_clip.OPTIONS | dict(format="openai", weights="model.pt", renamed=renamed, constants=numbers)
_OPTIONS |= dict(read_pixels=None)  # no file says it
VIT = Family(open_clip.tensors, matches, read, write=write, **_OPTIONS)
RESNET = Family(open_clip_conv.resnet_tensors, matches_resnet, read_resnet, write=write, image=ResNetConfig, **_OPTIONS)
