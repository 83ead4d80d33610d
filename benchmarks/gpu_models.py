"""The models that benchmarks.gpu_step measures, the variants of clipjax, and the batch that every contender gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Model:
    """A CLIP as OpenAI published it. image: size, patch, width, depth; text: width, depth, length."""

    preset: str
    open_clip: str
    image: tuple[int, int, int, int]
    text: tuple[int, int, int]
    embed_dim: int
    batch: int  # that every contender can hold on a card of 80 GB
    vocab: int = 49408


MODELS = {
    "b32": Model("clip_vit_b32", "ViT-B-32-quickgelu", (224, 32, 768, 12), (512, 12, 77), 512, 1024),
    "b16": Model("clip_vit_b16", "ViT-B-16-quickgelu", (224, 16, 768, 12), (512, 12, 77), 512, 256),
    "l14": Model("clip_vit_l14", "ViT-L-14-quickgelu", (224, 14, 1024, 24), (768, 12, 77), 768, 128),
    "toy": Model("clip_vit_b32", "", (32, 16, 64, 1), (64, 1, 8), 32, 4, 64),
}


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    contender: str
    model: str
    loss: str
    batch: int
    toy: bool = False
    variant: str = ""  # a row of VARIANTS


@dataclass(frozen=True)
class Variant:
    """A clipjax whose step is compiled otherwise, to see what a choice gives."""

    environ: dict[str, str] = field(default_factory=dict)  # of its process
    tower: dict[str, Any] = field(default_factory=dict)  # options of both towers
    cut: bool = False  # whether texts are cut as `clipjax train` cuts them; the other libraries read all columns


VARIANTS = {
    "": Variant(),
    "xla_defaults": Variant(environ={"CLIPJAX_GPU_OPTIONS": "off"}),
    "plain_attention": Variant(tower={"attention": "dense"}),
    "scanned_layers": Variant(tower={"scan_layers": True}),
    "cut_texts": Variant(cut=True),
    "no_graphs": Variant(environ={"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}),
}


def batch_of(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [B, H, W, 3] noise, int32 [B, L] captions of 5 to 39 tokens between start and end, padded with zeros)."""
    model, rng = MODELS[cell.model], np.random.default_rng(0)
    size, length = model.image[0], model.text[2]
    image = rng.integers(0, 256, (cell.batch, size, size, 3), dtype=np.uint8)
    text = np.zeros((cell.batch, length), np.int32)
    for row in text:
        count = int(rng.integers(5, 40)) if length > 42 else length - 3
        row[: count + 2] = [model.vocab - 2, *rng.integers(1, model.vocab - 2, count), model.vocab - 1]
    return image, text
