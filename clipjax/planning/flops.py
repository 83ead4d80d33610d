"""Model FLOPs of one training step, counted from the configuration: products only, three times the forward pass.

The convention of MFU (PaLM, 2204.02311, appendix B): what the mathematics needs, so neither recomputation nor padding
count. A layer on L tokens of width W: 24 L W^2 for MLP = 4 W, and 4 L^2 W for attention.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from clipjax.config import ExperimentConfig, ImageTowerConfig, TextTowerConfig
from clipjax.models.dual_encoder import CONV_TOWERS, IMAGE_TOWERS
from clipjax.planning.traced_flops import traced_flops


def step_flops(config: ExperimentConfig) -> dict[str, float]:
    """{part: FLOPs of one step of the global batch}, parts as in clipjax.planning.parts.

    A frozen tower counts its forward pass only. The optimiser's elementwise work is not counted.
    """
    model, batch = config.model, config.global_batch_size
    image, text = model.image, model.text
    if image.name in CONV_TOWERS:
        # Attention, where there is some at the end, is a thousandth and stays with its tower.
        image_tower, image_attention = conv_tower_flops(image, model.embed_dim), 0
        length, tokens_width = (image.image_size // 32) ** 2, conv_tokens_width(image)
    else:
        image_tower, image_attention, length = _vision_transformer(image, model.embed_dim)
        tokens_width = image.width
    forward = {
        "image tower": image_tower,
        "image attention": image_attention,
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
        cross = 4 * positions * decoder.width**2 + 4 * length * tokens_width * decoder.width
        layer = 8 * positions * decoder.width**2 + 8 * positions * decoder.width * decoder.mlp_dim + cross + attended
        words = 2 * positions * decoder.width * text.vocab_size + 2 * positions * text.width * decoder.width
        flops["captioner"] = 3.0 * batch * (decoder.depth * layer + words)
    return {part: float(value) for part, value in flops.items()}


def conv_tower_flops(image: ImageTowerConfig, embed_dim: int) -> int:
    """FLOPs of one image's forward pass, read off the traced tower."""
    tower = IMAGE_TOWERS[image.name](image, embed_dim, jnp.float32)
    pixels = jax.ShapeDtypeStruct((1, image.image_size, image.image_size, 3), jnp.float32)
    variables = jax.eval_shape(tower.init, jax.random.key(0), pixels)
    return traced_flops(tower.apply, variables, pixels)


def conv_tokens_width(image: ImageTowerConfig) -> int:
    """Channels of the last feature map."""
    return image.width * {"resnet": 32, "convnext": 8, "efficientnet": 1}[image.name]


def _vision_transformer(image: ImageTowerConfig, embed_dim: int) -> tuple[int, int, int]:
    """(FLOPs of the products with weights, of attention, length) of one image."""
    tokens = (image.image_size // image.patch_size) ** 2
    length = tokens + (image.pool == "cls")
    head = 2 * image.width * embed_dim if image.projection else 0
    if image.pool == "map":
        # Keys and values of every token; the probe's query, its output and the MLP once.
        head += 4 * length * image.width**2 + 4 * image.width**2 + 4 * image.width * image.mlp_dim
        head += 4 * length * image.width
    patches = 2 * tokens * 3 * image.patch_size**2 * image.width
    return _matrices(image, length) + patches + head, _attention(image, length), length


def _matrices(tower: ImageTowerConfig | TextTowerConfig, length: int) -> int:
    return tower.depth * length * (8 * tower.width**2 + 4 * tower.width * tower.mlp_dim)


def _attention(tower: ImageTowerConfig | TextTowerConfig, length: int) -> int:
    return tower.depth * 4 * math.prod((length, length, tower.width))
