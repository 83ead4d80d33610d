"""Model FLOPs of one training step, counted from the configuration: products only, three times the forward pass.

The convention is that of MFU (PaLM, 2204.02311, appendix B): what the mathematics needs, so neither recomputation nor
padding counts. Each tower counts its own (clipjax/models/towers), or is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from clipjax.config import ExperimentConfig, ImageTowerConfig, TextTowerConfig
from clipjax.models import Tower, image_tower, text_tower
from clipjax.models.tower_flops import TowerFlops, block_products, cross_attention, self_attention
from clipjax.training.trainable import adapted, farthest


def step_flops(config: ExperimentConfig) -> dict[str, float]:
    """{part: FLOPs of one step of the global batch}, parts as in clipjax.planning.parts.

    A frozen tower, or block, counts its forward pass only, and a block with adapters half of the backward pass: that
    of its input, not of its matrices. The optimizer's elementwise work is not counted.
    """
    model, batch = config.model, config.global_batch_size
    image = tower_flops(image_tower(model.image), model.image, model.embed_dim)
    text = tower_flops(text_tower(model.text), model.text, model.embed_dim)
    texts = batch * config.data.captions_per_image
    flops = {}
    for name, rows, tower in (("image", batch, image), ("text", texts, text)):
        share = trained_share(config, name)  # the backward pass costs two forward passes
        flops[f"{name} tower"] = float(rows * tower.products * (2 if adapted(config, name) else 1 + 2 * share))
        flops[f"{name} attention"] = float(rows * tower.attention * (1 + 2 * share))
    flops["loss"] = 6.0 * texts**2 * model.embed_dim
    decoder = model.decoder
    if decoder.depth:
        positions = model.text.context_length - 1
        layers = block_products(decoder, positions) + self_attention(decoder.depth, decoder.width, positions)
        layers += decoder.depth * cross_attention(positions, decoder.width, *image.tokens)
        layers += decoder.depth * 4 * positions * decoder.width * decoder.mlp_dim
        flops["captioner"] = 3.0 * batch * (layers + 2 * positions * decoder.width * model.text.vocab_size)
    return flops


def trained_share(config: ExperimentConfig, tower: str) -> float:
    """The share of a tower's blocks that the backward pass goes through, 0 to 1."""
    if adapted(config, tower):
        return 1.0
    depth = getattr(getattr(config.model, tower), "depth", 1)
    return min(max(farthest(config, tower), 0), depth) / depth


def mfu(flops: float, seconds: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation (PaLM, 2204.02311): a step's model FLOPs as a share of what `devices` chips can.

    seconds: of the step; peak: FLOP/s of a chip.
    """
    return flops / (devices * peak * seconds)


def tower_flops(row: Tower, config: ImageTowerConfig | TextTowerConfig, embed_dim: int) -> TowerFlops:
    """FLOPs of one example's forward pass: the row's own count, or else those of the traced tower.

    A traced tower's attention counts as part of its products: the convolutional towers have little or none.
    """
    if row.flops:
        return row.flops(config, embed_dim)
    tower = row.module(config, embed_dim, jnp.float32)
    x = next(jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in row.columns(config, 1).values())
    variables = jax.eval_shape(tower.init, jax.random.key(0), x)
    _, *tokens = jax.eval_shape(tower.apply, variables, x).tokens.shape
    return TowerFlops(traced_flops(tower.apply, variables, x), 0, tuple(tokens))


def traced_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of function at these shapes, read off its program; a multiplication and an addition are two.

    Nothing is computed. A convolution's taps on padding count, as in published tables; a loop's body counts each time
    that it runs.
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
        elif name == "cond":  # forms for several platforms: one of them is executed
            total += max(_count(branch.jaxpr) for branch in parameters["branches"])
        else:
            times = parameters["length"] if name == "scan" else 1
            total += times * sum(_count(inner) for inner in _inner(parameters))
    return total


def _inner(parameters: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs inside an equation: of a jit, a loop, a custom derivative, a rematerialised block."""
    programs = []
    for value in parameters.values():
        if isinstance(value, core.ClosedJaxpr):
            programs.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            programs.append(value)
    return programs
