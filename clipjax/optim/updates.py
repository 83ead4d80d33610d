"""Gradients -> updates: clipping, the optimizer, weight decay, the schedule, per-tower learning rates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.config import OptimizerConfig, ScheduleConfig, nearest, require
from clipjax.optim.optimizers import OPTIMIZERS, map_names

TOWERS = ("image", "text")


def make_optimizer(config: OptimizerConfig, params: Any, total_steps: int) -> optax.GradientTransformation:
    """The whole of an update, in this order: clip by the global norm, optimizer and weight decay, tower
    multipliers, schedule, sign.

    Args:
      params: the parameter tree {"image": ..., "text": ..., "logit_scale": ...}; shapes are enough.
    A tower whose multiplier is 0 gets zero updates, has no optimizer state and does not count in the
    clipped norm. Any other multiplier scales the tower's whole update, weight decay included. Moments have
    the shape and path of their parameter. Raises ConfigError.
    """
    check_optimizer(config, total_steps)
    multipliers = {tower: getattr(config, f"{tower}_lr_multiplier") for tower in TOWERS}
    trained = optax.chain(
        optax.clip_by_global_norm(config.grad_clip_norm) if config.grad_clip_norm else optax.identity(),
        OPTIMIZERS[config.name](config),
        *(
            optax.masked(optax.scale(multiplier), functools.partial(map_names, lambda p, t=tower: p[0] == t))
            for tower, multiplier in multipliers.items()
            if multiplier not in (0, 1)
        ),
        optax.scale_by_schedule(functools.partial(_relative, config.schedule, total_steps)),
        optax.scale(-1.0),
    )
    labels = map_names(lambda parts: "frozen" if multipliers.get(parts[0]) == 0 else "trained", params)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def make_schedule(config: OptimizerConfig, total_steps: int) -> Callable[[Any], jax.Array]:
    """step (0 is the first, int or int32 scalar) -> learning rate, float32 scalar.

    Warm-up is linear and its last step, warmup_steps - 1, has the full rate (OpenCLIP); then
    cosine and linear fall from 1 at step warmup_steps towards final_fraction at total_steps, and rsqrt is
    sqrt(timescale / (timescale + step - warmup_steps)) (big_vision). The cool-down multiplies rsqrt and
    constant by (total_steps - step) / cooldown_steps.
    """
    return lambda step: config.learning_rate * _relative(config.schedule, total_steps, step)


def check_optimizer(config: OptimizerConfig, total_steps: int) -> None:
    """Refuses unknown names and values that cannot train. Raises ConfigError."""
    where, schedule = "config.optimizer", config.schedule
    require(
        config.name in OPTIMIZERS,
        f"{where}.name='{config.name}' is unknown.{nearest(config.name, OPTIMIZERS)}",
    )
    for name in ("b1", "b2", "ema_decay"):
        value = getattr(config, name)
        require(0 <= value < 1, f"{where}.{name}={value} must be in [0, 1).")
    for name in ("weight_decay", "eps", "grad_clip_norm", *(f"{tower}_lr_multiplier" for tower in TOWERS)):
        value = getattr(config, name)
        require(0 <= value < math.inf, f"{where}.{name}={value} must be a finite number, 0 or more.")
    require(
        0 < config.learning_rate < math.inf,
        f"{where}.learning_rate={config.learning_rate} must be positive; a multiplier of 0 freezes a tower.",
    )
    require(
        config.max_nonfinite_steps >= 1,
        f"{where}.max_nonfinite_steps={config.max_nonfinite_steps} must be at least 1.",
    )
    require(
        any(getattr(config, f"{tower}_lr_multiplier") > 0 for tower in TOWERS),
        f"{where}.image_lr_multiplier and text_lr_multiplier are both 0: nothing is left to train.",
    )
    require(
        not config.name.startswith("bv_") or config.weight_decay < 0.01,
        f"{where}.weight_decay={config.weight_decay} with name='{config.name}' shrinks every kernel by that "
        "share at EACH step: big_vision adds it after the learning rate. What AdamW calls "
        f"{config.weight_decay} is {config.weight_decay * config.learning_rate:.2g} here, that is times "
        "learning_rate.",
    )
    warmup, cooldown = schedule.warmup_steps, schedule.cooldown_steps
    require(
        schedule.name in SCHEDULES,
        f"{where}.schedule.name='{schedule.name}' is unknown.{nearest(schedule.name, SCHEDULES)}",
    )
    require(
        warmup >= 0 and cooldown >= 0 and warmup + cooldown <= total_steps and warmup < total_steps,
        f"{where}.schedule.warmup_steps={warmup} and cooldown_steps={cooldown} do not fit into "
        f"config.total_steps={total_steps}.",
    )
    require(
        cooldown == 0 or schedule.name in ("rsqrt", "constant"),
        f"{where}.schedule.cooldown_steps={cooldown} is for rsqrt and constant; {schedule.name} falls by "
        "itself. Set it to 0.",
    )
    require(
        0 <= schedule.final_fraction <= 1,
        f"{where}.schedule.final_fraction={schedule.final_fraction} must be in [0, 1].",
    )
    require(
        schedule.rsqrt_timescale > 0,
        f"{where}.schedule.rsqrt_timescale={schedule.rsqrt_timescale} must be positive.",
    )


def _relative(schedule: ScheduleConfig, total_steps: int, step: Any) -> jax.Array:
    """The learning rate as a share of its peak, float32 scalar."""
    step = jnp.asarray(step, jnp.float32)
    after = jnp.maximum(step - schedule.warmup_steps, 0.0)
    share = jnp.minimum(after / (total_steps - schedule.warmup_steps), 1.0)
    rate = SCHEDULES[schedule.name](after, share, schedule)
    if schedule.warmup_steps:
        rate *= jnp.minimum((step + 1) / schedule.warmup_steps, 1.0)
    if schedule.cooldown_steps:
        rate *= jnp.clip((total_steps - step) / schedule.cooldown_steps, 0.0, 1.0)
    return rate


# Each: (steps after warm-up, their share of all steps after warm-up, config) -> share of the learning rate.
SCHEDULES: dict[str, Callable[[jax.Array, jax.Array, ScheduleConfig], jax.Array]] = {
    "cosine": lambda _, t, c: c.final_fraction + (1 - c.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * t)),
    "linear": lambda _, t, c: c.final_fraction + (1 - c.final_fraction) * (1 - t),
    "rsqrt": lambda steps, _, c: jnp.sqrt(c.rsqrt_timescale / (c.rsqrt_timescale + steps)),
    "constant": lambda steps, *_: jnp.ones_like(steps),
}
