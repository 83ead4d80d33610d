"""Model FLOPs of one training step, counted from the configuration: products only, three times the forward pass.

The convention of MFU (PaLM, 2204.02311, appendix B): what the mathematics needs, so neither recomputation nor padding
count. A layer on L tokens of width W: 24 L W^2 for MLP = 4 W, and 4 L^2 W for attention. Patches that training drops
are not computed after their embedding and do not count there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from clipjax.config import BlockConfig, ExperimentConfig, ImageTowerConfig, ModelConfig
from clipjax.models.dual_encoder import CONV_TOWERS, IMAGE_TOWERS


def step_flops(config: ExperimentConfig) -> dict[str, float]:
    """{part: FLOPs of one step of the global batch}, parts as in clipjax.planning.parts.

    A frozen tower counts its forward pass only. The optimiser's elementwise work is not counted.
    """
    model, batch = config.model, config.global_batch_size
    image, text = model.image, model.text
    if image.name in CONV_TOWERS:
        # Attention, where there is some at the end, is a thousandth and stays with its tower.
        image_tower, image_attention = conv_tower_flops(image, model.embed_dim), 0
        seen, seen_width = (image.image_size // 32) ** 2, conv_tokens_width(image)
    else:
        patches = image.max_patches if image.name == "naflex" else (image.image_size // image.patch_size) ** 2
        length = image_length(image, patches)
        image_tower = _matrices(image, length) + 2 * patches * 3 * image.patch_size**2 * image.width
        image_tower += _image_head(model, length)
        image_attention = _attention(image, length)
        seen, seen_width = image_tokens(model, length)
    words = text.context_length + (text.name == "transformer" and text.pool == "cls")
    forward = {
        "image tower": image_tower,
        "image attention": image_attention,
        "text tower": _matrices(text, words) + 2 * text.width * model.embed_dim,
        "text attention": _attention(text, words),
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
        layers = _matrices(decoder, positions) + _attention(decoder, positions)
        layers += decoder.depth * _cross_attention(positions, decoder.width, seen, seen_width)
        layers += decoder.depth * 4 * positions * decoder.width * decoder.mlp_dim
        flops["captioner"] = 3.0 * batch * (layers + 2 * positions * decoder.width * text.vocab_size)
    return {part: float(value) for part, value in flops.items()}


def image_length(image: ImageTowerConfig, patches: int) -> int:
    """Tokens that a training step's blocks see of one image."""
    return max(1, int(patches * (1 - image.patch_dropout))) + (image.pool == "cls" or image.class_token)


def conv_tower_flops(image: ImageTowerConfig, embed_dim: int) -> int:
    """FLOPs of one image's forward pass, read off the traced tower."""
    tower = IMAGE_TOWERS[image.name](image, embed_dim, jnp.float32)
    pixels = jax.ShapeDtypeStruct((1, image.image_size, image.image_size, 3), jnp.float32)
    variables = jax.eval_shape(tower.init, jax.random.key(0), pixels)
    return traced_flops(tower.apply, variables, pixels)


def conv_tokens_width(image: ImageTowerConfig) -> int:
    """Channels of the last feature map."""
    return image.width * {"resnet": 32, "convnext": 8, "efficientnet": 1}[image.name]


def image_tokens(model: ModelConfig, length: int) -> tuple[int, int]:
    """(how many, how wide): the tokens that an image tower of `length` tokens gives the captioner."""
    if model.image.pool in ("attentional", "parallel", "cascade"):
        return model.image.pooler_queries - (model.image.pool == "attentional"), model.embed_dim
    return length, model.image.width


def _image_head(model: ModelConfig, length: int) -> int:
    image, embed_dim = model.image, model.embed_dim
    by_attention = image.pool in ("attentional", "parallel", "cascade")
    flops = 2 * (embed_dim if by_attention else image.width) * embed_dim if image.projection else 0
    if image.pool == "map":
        flops += _cross_attention(1, image.width, length, image.width) + 4 * image.width * image.mlp_dim
    if by_attention:
        flops += _cross_attention(image.pooler_queries, embed_dim, length, image.width)
    if image.pool == "parallel":
        flops += _cross_attention(1, embed_dim, length, image.width)
    if image.pool == "cascade":
        flops += _cross_attention(1, embed_dim, image.pooler_queries, embed_dim)
    return flops


def _matrices(tower: BlockConfig, length: int) -> int:
    mlp = 3 if tower.mlp == "swiglu" else 2
    return tower.depth * length * (8 * tower.width**2 + 2 * mlp * tower.width * tower.mlp_dim)


def _attention(tower: BlockConfig, length: int) -> int:
    return tower.depth * 4 * math.prod((length, length, tower.width))


def _cross_attention(queries: int, width: int, keys: int, key_width: int) -> int:
    """Query and output matrices of the queries, key and value matrices of the keys, and both products."""
    return 4 * queries * width**2 + 4 * keys * key_width * width + 4 * queries * keys * width


def traced_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs (a multiplication and an addition are two) of function at these shapes; nothing is computed.

    A convolution's taps on padding count, as in published tables. A loop counts as often as it runs.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        shapes = [v.aval.shape for v in equation.invars[:2]]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            depth = math.prod(shapes[0][axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            features = parameters["dimension_numbers"].rhs_spec[0]
            taps = math.prod(size for axis, size in enumerate(shapes[1]) if axis != features)
            total += 2 * taps * equation.outvars[0].aval.size
        else:
            times = parameters["length"] if name == "scan" else 1
            total += times * sum(_count(inner) for inner in _inner(parameters))
    return total


def _inner(parameters: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs inside an equation: of a jit, a loop, a custom derivative, a rematerialised block."""
    found = []
    for value in parameters.values():
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
    return found
