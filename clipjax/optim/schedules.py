"""Learning-rate schedules: warm-up, one of SCHEDULES, cool-down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clipjax.config import OptimizerConfig, ScheduleConfig, nearest, require


class Schedule(NamedTuple):
    """A row of SCHEDULES."""

    # (steps after warm-up, their share of all steps after warm-up, config) -> share of the learning rate, float32
    share: Callable[[jax.Array, jax.Array, ScheduleConfig], jax.Array]
    falls: bool  # reaches its end by itself, so it takes no cool-down


def make_schedule(config: OptimizerConfig, total_steps: int) -> Callable[[Any], jax.Array]:
    """step (0 is the first, int or int32 scalar) -> learning rate, float32 scalar.

    Warm-up is linear: (step + 1) / warmup_steps, so that its last step, warmup_steps - 1, has the full rate (as
    OpenCLIP). For big_vision's optimizers it is step / warmup_steps, as in big_vision: the first update is zero. After
    it, cosine and linear fall from 1 at step warmup_steps towards final_fraction at total_steps, and rsqrt is
    sqrt(timescale / (timescale + step - warmup_steps)) (as big_vision). The cool-down multiplies rsqrt and constant by
    (total_steps - step) / cooldown_steps.
    """
    return lambda step: config.learning_rate * share_of_peak(config, total_steps, step)


def scale_by_share(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by share_of_peak of the update's argument `step`, an int32 scalar.

    Without the argument, the step is the number of updates so far, which the state counts as optax.scale_by_schedule's.
    """

    def update(updates: Any, state: Any, params: Any = None, *, step: Any = None, **_: Any) -> tuple[Any, Any]:
        step = state.count if step is None else step
        share = share_of_peak(config, total_steps, step)
        count = jnp.asarray(step, jnp.int32) + 1
        return jax.tree.map(lambda u: share.astype(u.dtype) * u, updates), optax.ScaleByScheduleState(count)

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
    )


def share_of_peak(optimizer: OptimizerConfig, total_steps: int, step: Any) -> jax.Array:
    """The learning rate of a step as a share of its peak, float32 scalar."""
    config = optimizer.schedule
    step = jnp.asarray(step, jnp.float32)
    after = jnp.maximum(step - config.warmup_steps, 0.0)
    progress = jnp.minimum(after / (total_steps - config.warmup_steps), 1.0)
    share = SCHEDULES[config.name].share(after, progress, config)
    if config.warmup_steps:
        share *= jnp.minimum((step + optimizer.first_warmup_step) / config.warmup_steps, 1.0)
    if config.cooldown_steps:
        share *= jnp.clip((total_steps - step) / config.cooldown_steps, 0.0, 1.0)
    return share


def check_schedule(config: ScheduleConfig, total_steps: int) -> None:
    """Refuses an unknown schedule and steps that do not fit into the run. Raises ConfigError."""
    where, warmup, cooldown = "config.optimizer.schedule", config.warmup_steps, config.cooldown_steps
    require(config.name in SCHEDULES, f"{where}.name='{config.name}' is unknown.{nearest(config.name, SCHEDULES)}")
    require(
        warmup + cooldown <= total_steps and warmup < total_steps,
        f"{where}.warmup_steps={warmup} and cooldown_steps={cooldown} do not fit into "
        f"config.total_steps={total_steps}.",
    )
    require(
        cooldown == 0 or not SCHEDULES[config.name].falls,
        f"{where}.cooldown_steps={cooldown} is for {' and '.join(n for n, row in SCHEDULES.items() if not row.falls)}; "
        f"{config.name} falls by itself. Set it to 0.",
    )
    require(
        config.final_fraction == 0 or SCHEDULES[config.name].falls,
        f"{where}.final_fraction={config.final_fraction} is for "
        f"{' and '.join(n for n, row in SCHEDULES.items() if row.falls)}; {config.name} does not use it. Set it to 0.",
    )


def _cosine(steps: jax.Array, progress: jax.Array, config: ScheduleConfig) -> jax.Array:
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _linear(steps: jax.Array, progress: jax.Array, config: ScheduleConfig) -> jax.Array:
    return config.final_fraction + (1 - config.final_fraction) * (1 - progress)


def _rsqrt(steps: jax.Array, progress: jax.Array, config: ScheduleConfig) -> jax.Array:
    return jnp.sqrt(config.rsqrt_timescale / (config.rsqrt_timescale + steps))


def _constant(steps: jax.Array, progress: jax.Array, config: ScheduleConfig) -> jax.Array:
    return jnp.ones_like(steps)


SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule(_cosine, falls=True),
    "linear": Schedule(_linear, falls=True),
    "rsqrt": Schedule(_rsqrt, falls=False),
    "constant": Schedule(_constant, falls=False),
}
