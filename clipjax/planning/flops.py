"""Model FLOPs of one training step, counted from the configuration: products only, three times the forward pass.

The convention of MFU (PaLM, 2204.02311, appendix B): what the mathematics needs, so neither recomputation nor padding
count. A layer on L tokens of width W: 24 L W^2 for MLP = 4 W, and 4 L^2 W for attention.
"""

from __future__ import annotations

import math

from clipjax.config import ExperimentConfig, ImageTowerConfig, TextTowerConfig


def step_flops(config: ExperimentConfig) -> dict[str, float]:
    """{part: FLOPs of one step of the global batch}, parts as in clipjax.planning.parts.

    A frozen tower counts its forward pass only. The optimiser's elementwise work is not counted.
    """
    model, batch = config.model, config.global_batch_size
    image, text = model.image, model.text
    tokens = (image.image_size // image.patch_size) ** 2
    length = tokens + (image.pool == "cls")
    head = 2 * image.width * model.embed_dim if image.projection else 0
    if image.pool == "map":
        # Keys and values of every token; the probe's query, its output and the MLP once.
        head += 4 * length * image.width**2 + 4 * image.width**2 + 4 * image.width * image.mlp_dim
        head += 4 * length * image.width
    patches = 2 * tokens * 3 * image.patch_size**2 * image.width
    forward = {
        "image tower": _matrices(image, length) + patches + head,
        "image attention": _attention(image, length),
        "text tower": _matrices(text, text.context_length) + 2 * text.width * model.embed_dim,
        "text attention": _attention(text, text.context_length),
    }
    factors = {
        "image": 3 if config.optimizer.image_lr_multiplier else 1,
        "text": 3 if config.optimizer.text_lr_multiplier else 1,
    }
    flops = {part: batch * value * factors[part.split()[0]] for part, value in forward.items()}
    flops["loss"] = 6.0 * batch**2 * model.embed_dim
    decoder = model.decoder
    if decoder.depth:
        positions = text.context_length - 1
        attended = 4 * positions * decoder.width * (positions + length)
        cross = 4 * positions * decoder.width**2 + 4 * length * image.width * decoder.width
        layer = 8 * positions * decoder.width**2 + 8 * positions * decoder.width * decoder.mlp_dim + cross + attended
        words = 2 * positions * decoder.width * text.vocab_size + 2 * positions * text.width * decoder.width
        flops["captioner"] = 3.0 * batch * (decoder.depth * layer + words)
    return {part: float(value) for part, value in flops.items()}


def _matrices(tower: ImageTowerConfig | TextTowerConfig, length: int) -> int:
    return tower.depth * length * (8 * tower.width**2 + 4 * tower.width * tower.mlp_dim)


def _attention(tower: ImageTowerConfig | TextTowerConfig, length: int) -> int:
    return tower.depth * 4 * math.prod((length, length, tower.width))
