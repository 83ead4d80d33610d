"""Gradients -> updates: clipping, the optimizer and its weight decay, learning rates per tower, the schedule.

    tx = make_optimizer(config.optimizer, params, config.total_steps)
    learning_rate = make_schedule(config.optimizer, config.total_steps)(step)

To add an optimizer, write one file with its config, its gradient transformation and its check, and one row in
OPTIMIZERS. Schedules are functions and rows in schedules.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax

from clipjax.config import OptimizerConfig, Part, nearest, require
from clipjax.optim import adafactor, adamw, big_vision, lamb, lion, muon
from clipjax.optim.layers import TOWERS, Heads, multiplier, rate_multipliers
from clipjax.optim.schedules import SCHEDULES, check_schedule, make_schedule, scale_by_share
from clipjax.optim.updates import map_names

__all__ = ["OPTIMIZERS", "SCHEDULES", "check_optimizer", "make_optimizer", "make_schedule"]

# Each row makes, from its config, an optax transformation of gradients into updates at the schedule's peak, before the
# sign is flipped. Weight decay works as in the code that the row is named after.
OPTIMIZERS: dict[str, Part] = {
    "adamw": adamw.OPTIMIZER,
    "adafactor": adafactor.OPTIMIZER,
    "lion": lion.OPTIMIZER,
    "lamb": lamb.OPTIMIZER,
    "muon": muon.OPTIMIZER,
    "bv_adam": big_vision.ADAM,
    "bv_adafactor": big_vision.ADAFACTOR,
    "bv_lion": big_vision.LION,
}


def make_optimizer(
    config: OptimizerConfig,
    params: Any,
    total_steps: int,
    optimizers: Mapping[str, Part] = OPTIMIZERS,
    *,
    heads: Heads = MappingProxyType({}),
) -> optax.GradientTransformationExtraArgs:
    """The whole update: clip by the global norm, optimizer and weight decay, schedule, rates of towers and layers.

    Args:
      params: the parameters to update, {"image": ..., "text": ..., "logit_scale": ...}; shapes are enough. It may be
        the part of them that is trained (clipjax/training/trainable.py).
      optimizers: the table to look in; pass your own to use an optimizer that is not in OPTIMIZERS.
      heads: {tower: names of its parameters that follow the blocks}, for config.layer_decay (clipjax/optim/layers.py).

    A tower or temperature whose multiplier is 0 gets zero updates, has no optimizer state and does not count in the
    clipped norm. Any other multiplier, and layer_decay, scale the whole update, weight decay included. Moments have the
    shape and path of their parameter. Raises ConfigError.

    update(grads, state, params, step=...) scales by the schedule at `step` (0 is the first), whatever number of updates
    was kept before it: a step that was skipped passes in the schedule, but not in the moments. Without `step`, the
    schedule counts the updates.
    """
    check_optimizer(config, total_steps, optimizers)
    trained = optax.chain(
        optax.clip_by_global_norm(config.grad_clip_norm) if config.grad_clip_norm else optax.identity(),
        optimizers[config.name](config),
        scale_by_share(config, total_steps),
        optax.stateless(lambda updates, _: _descend(updates, rate_multipliers(config, updates, heads))),
    )
    labels = map_names(lambda parts: "trained" if multiplier(config, parts[0]) else "frozen", params)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _descend(updates: Any, rates: Any) -> Any:
    """-rate * update, where one rate is of a whole parameter or of each layer of a stack."""
    return jax.tree.map(lambda update, rate: -rate.astype(update.dtype) * update, updates, rates)


def check_optimizer(config: OptimizerConfig, total_steps: int, optimizers: Mapping[str, Part] = OPTIMIZERS) -> None:
    """Refuses unknown names and values that cannot train. Raises ConfigError."""
    where = "config.optimizer"
    require(config.name in optimizers, f"{where}.name='{config.name}' is unknown.{nearest(config.name, optimizers)}")
    row = optimizers[config.name]
    require(
        isinstance(config, row.config),
        f"{where} is a {type(config).__name__}, but '{config.name}' reads a {row.config.__name__}.",
    )
    require(
        any(getattr(config, f"{tower}_lr_multiplier") > 0 for tower in TOWERS),
        f"{where}.image_lr_multiplier and text_lr_multiplier are both 0: nothing is left to train.",
    )
    if row.check is not None:
        row.check(config)
    check_schedule(config.schedule, total_steps)
