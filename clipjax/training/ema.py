"""The exponential moving average of the parameters (config.optimizer.ema_decay), which evaluation and exports use.

A run keeps averages of params and of BatchNorm's running statistics, or of neither.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.config import OptimizerConfig

Averages = dict[str, Any]  # the fields "ema_params" and "ema_batch_stats" of a TrainState; None without an average


def first_averages(config: OptimizerConfig, params: Any, batch_stats: Any) -> Averages:
    """The averages at the start of a run. They are copies, because the step can donate each array only once."""
    if not config.ema_decay:
        return {"ema_params": None, "ema_batch_stats": None}
    copies = jax.tree.map(jnp.copy, (params, batch_stats))
    return {"ema_params": copies[0], "ema_batch_stats": copies[1]}


def updated_averages(config: OptimizerConfig, averages: Averages, params: Any, batch_stats: Any) -> Averages:
    """decay * average + (1 - decay) * value, of the values after a step. Trees are alike."""
    if not config.ema_decay:
        return averages
    return optax.incremental_update(
        {"ema_params": params, "ema_batch_stats": batch_stats}, averages, 1 - config.ema_decay
    )
