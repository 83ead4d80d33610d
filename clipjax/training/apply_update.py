"""The state after an update: the new one, or the old where loss or gradient are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.training.ema import updated_averages
from clipjax.training.temperature import clip_logit_scale

Parts = dict[str, Any]  # of a TrainState: params, opt_state, batch_stats, ema_params, ema_batch_stats


def apply_update(
    config: ExperimentConfig,
    mesh: Mesh,
    finite: jax.Array,
    before: Parts,
    batch_stats: Any,
    update: Callable[[], tuple[Any, Any]],
) -> tuple[Parts, jax.Array]:
    """(the parts after the step, the norm of the parameters' change); if not `finite`, (before, 0).

    finite: scalar bool. batch_stats: those of this step. update() -> (updates of the parameters, opt_state).
    """

    def applied(updates: Any, opt_state: Any) -> Parts:
        params = optax.apply_updates(before["params"], updates)
        params = clip_logit_scale(params, config.model.logit_scale_max)
        averages = {name: before[name] for name in ("ema_params", "ema_batch_stats")}
        averages = updated_averages(config.optimizer, averages, params, batch_stats)
        return {"params": params, "opt_state": opt_state, "batch_stats": batch_stats} | averages

    change = in_a_branch if mesh.devices.flat[0].platform == "cpu" else by_selection
    return change(finite, before, update, applied)


def by_selection(finite: jax.Array, before: Parts, update: Callable, applied: Callable) -> tuple[Parts, jax.Array]:
    """The new state is computed in any case, and the old or the new is written."""
    updates, opt_state = update()
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), applied(updates, opt_state), before)
    return new, jnp.where(finite, norm_of_update(updates, before["params"], new["params"]), 0.0)


def in_a_branch(finite: jax.Array, before: Parts, update: Callable, applied: Callable) -> tuple[Parts, jax.Array]:
    """For CPUs: XLA:CPU would make every selection a pass over the state of its own.

    It also copies the parameters if anything that reads the old ones could run after the new ones are written. The
    updates' norm is the only such reader, so the new ones wait for it.
    """

    def change() -> tuple[Parts, jax.Array]:
        updates, opt_state = update()
        norm = optax.tree.norm(updates)
        # No norm is negative, which the compiler cannot know.
        updates = jax.tree.map(lambda u: jnp.where(norm != -1.0, u, jnp.zeros_like(u)), updates)
        return applied(updates, opt_state), norm

    return jax.lax.cond(finite, change, lambda: (before, jnp.zeros(())))


def norm_of_update(updates: Any, before: Any, new: Any) -> jax.Array:
    """The L2 norm of the change of the parameters, float32: of `updates`, on a TPU of new - before.

    A TPU sums up the latter while it writes the new parameters; the former would be a pass over memory of its own.
    """
    return jax.lax.platform_dependent(
        updates,
        before,
        new,
        tpu=lambda updates, before, new: optax.tree.norm(jax.tree.map(jnp.subtract, new, before)),
        default=lambda updates, before, new: optax.tree.norm(updates),
    )
