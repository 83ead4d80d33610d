"""Model FLOPs of one training step, counted from the configuration: products only, three times the forward pass.

The convention is that of MFU (PaLM, 2204.02311, appendix B): what the mathematics needs on a batch of this shape, so
recomputation (config.model.*.remat, accumulation_steps) does not count. Each tower counts its own
(clipjax/models/towers), or is traced.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from clipjax.config import ExperimentConfig, ImageTowerConfig, TextTowerConfig
from clipjax.data.cut import REST, WHOLE
from clipjax.models import Tower, image_tower, text_tower
from clipjax.models.tower_flops import TowerFlops, block_products, cross_attention, self_attention
from clipjax.training.teacher import EmbeddedTeacher, Teacher
from clipjax.training.trainable import adapted, farthest

Shapes = Mapping[str, tuple[int, ...]]  # of a batch's columns


def step_flops(config: ExperimentConfig, shapes: Shapes | None = None) -> dict[str, float]:
    """{part: FLOPs of one step of the global batch}, parts as in clipjax.planning.parts.

    shapes: of the batch's columns as the step takes them, whose texts may be cut and whose images may fill a smaller
    budget; None: the longest. A frozen tower, or block, counts its forward pass only, and a block with adapters half
    of the backward pass: that of its input, not of its matrices. A tower whose embeddings are read
    (config.data.image_embeddings) counts nothing, nor does the optimizer's elementwise work.
    """
    model, batch = config.model, config.global_batch_size
    texts = batch * config.data.captions_per_image
    image = _image_flops(config, shapes)
    towers = {"image": [(0 if config.data.image_embeddings else batch, image)], "text": _text_flops(config, shapes)}
    flops = {}
    for name, parts in towers.items():
        share = trained_share(config, name)
        for i, part in enumerate((f"{name} tower", f"{name} attention")):
            forward = sum(rows * forward_pass(config, tower)[i] for rows, tower in parts)
            # The backward pass costs two forward passes, of the trained blocks; what is not needed is of the last one.
            backward = 2 * max(forward - (1 - share) * sum(rows * tower[i] for rows, tower in parts), 0)
            flops[part] = float(forward + (forward if adapted(config, name) and i == 0 else backward))
    flops["loss"] = 6.0 * texts**2 * model.embed_dim
    decoder = model.decoder
    if decoder.depth:
        positions = (shapes["text"][-1] if shapes else model.text.context_length) - 1
        layers = block_products(decoder, positions) + self_attention(decoder.depth, decoder.width, positions)
        layers += decoder.depth * cross_attention(positions, decoder.width, *image.tokens)
        layers += decoder.depth * 4 * positions * decoder.width * decoder.mlp_dim
        flops["captioner"] = 3.0 * batch * (layers + 2 * positions * decoder.width * model.text.vocab_size)
    return flops


class BatchFlops:
    """batch -> model FLOPs of the step on it, which depend on the shapes of its columns alone.

    A teacher that runs counts the forward passes of its towers, on the same batch.
    """

    def __init__(self, config: ExperimentConfig, teacher: Teacher | EmbeddedTeacher | None = None):
        self.config = config
        self.teacher = teacher.config if isinstance(teacher, Teacher) else None
        self.known: dict[tuple, float] = {}

    def __call__(self, batch: Mapping[str, Any]) -> float:
        key = tuple((name, batch[name].shape) for name in sorted(batch))
        if key not in self.known:
            shapes = dict(key)
            flops = sum(step_flops(self.config, shapes).values())
            self.known[key] = flops + (self._of_teacher(shapes) if self.teacher else 0)
        return self.known[key]

    def _of_teacher(self, shapes: Shapes) -> float:
        config, rows = self.teacher, self.config.global_batch_size
        whole = {"text": shapes[WHOLE]} if WHOLE in shapes else {}
        shapes = {name: shape for name, shape in shapes.items() if not whole or name != REST} | whole
        parts = [(rows, _image_flops(config, shapes)), *_text_flops(config, shapes)]
        return float(sum(count * sum(forward_pass(config, tower)) for count, tower in parts))


def _image_flops(config: ExperimentConfig, shapes: Shapes | None) -> TowerFlops:
    """Of one image, in a batch of these shapes."""
    image = config.model.image
    if shapes and "spatial_shape" in shapes:
        image = dataclasses.replace(image, max_patches=shapes["image"][1])
    return tower_flops(image_tower(image), image, config.model.embed_dim)


def _text_flops(config: ExperimentConfig, shapes: Shapes | None) -> list[tuple[int, TowerFlops]]:
    """[(texts, FLOPs of one of them)], for each length that a batch of these shapes has."""
    text, texts = config.model.text, config.global_batch_size * config.data.captions_per_image
    columns = [shapes[name] for name in ("text", REST) if name in shapes] if shapes else [(texts, text.context_length)]
    parts = []
    for *rows, length in columns:
        cut = dataclasses.replace(text, context_length=length)
        parts.append((math.prod(rows), tower_flops(text_tower(cut), cut, config.model.embed_dim)))
    return parts


def forward_pass(config: ExperimentConfig, tower: TowerFlops) -> tuple[int, int]:
    """(products, attention) of a tower's: without what only its tokens need, if no captioner reads them."""
    unread = (0, 0) if config.model.decoder.depth else tower.unread
    return tower.products - unread[0], tower.attention - unread[1]


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
