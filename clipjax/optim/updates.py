"""What optimizers share: options and their limits, weight decay, and transformations of one layer at a time.

Two conventions of weight decay, which differ by the learning rate (1000 times at 1e-3); r(t) is the schedule:
  most optimizers  p -= r(t) * learning_rate * (direction + weight_decay * p)     not norms, biases, scalars
  bv_...           p -= r(t) * (learning_rate * direction + weight_decay * p)     kernels only
So weight_decay=1e-4 in a big_vision config is 0.1 for AdamW at learning rate 1e-3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from clipjax.config import Dtype, OptimizerConfig
from clipjax.config.fields import STATE, experiment
from clipjax.config.ranges import EPSILON, RATE

# Parameters that are a size or an offset rather than a direction: AdamW and its relatives do not decay them.
NO_DECAY = ("scale", "bias", "logit_scale", "logit_bias", "cls_token", "probe", "ls_1", "ls_2")


@dataclass(frozen=True)
class MomentsConfig(OptimizerConfig):
    """For optimizers with moving averages of the gradient."""

    b1: float = experiment(0.9, within=RATE)  # share of the first moment that a step keeps
    b2: float = experiment(0.98, within=RATE)  # share of the second moment that a step keeps
    moment_dtype: Dtype = experiment("float32", fixed=STATE)  # of the first moment


@dataclass(frozen=True)
class AdamConfig(MomentsConfig):
    """For optimizers that divide by the root of a second moment, plus eps."""

    eps: float = experiment(1e-6, within=EPSILON)  # added to the root of the second moment


def adam(config: AdamConfig) -> optax.GradientTransformation:
    """Adam's direction (Kingma & Ba 2015), without learning rate and decay."""
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moment_dtype)


def with_decay(config: OptimizerConfig, direction: optax.GradientTransformation) -> optax.GradientTransformation:
    """learning_rate * (direction + weight_decay * parameter)."""
    return optax.chain(
        direction,
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale(config.learning_rate),
    )


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """tx applied to each layer of scanned blocks separately: norms, factors and matrix products are per layer.

    For scanned blocks its state, counters included, has a leading layer axis.
    """
    stacked = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))
    labels = functools.partial(map_names, _stack_of)

    def partition(tree: Any) -> optax.GradientTransformation:
        names = set(jax.tree.leaves(labels(tree)))
        return optax.partition({name: tx if name == "rest" else stacked for name in names}, labels)

    return optax.GradientTransformation(
        lambda params: partition(params).init(params),
        lambda updates, state, params: partition(updates).update(updates, state, params),
    )


def decayed(params: Any) -> Any:
    """Tree of bool: whether AdamW and its relatives decay a parameter."""
    return map_names(lambda parts: parts[-1] not in NO_DECAY, params)


def map_names(fn: Callable[[tuple[str, ...]], Any], params: Any) -> Any:
    """Tree of fn(("image", "blocks", "mlp", "up", "kernel")) for each leaf of a tree of nested dicts."""
    return jax.tree_util.tree_map_with_path(lambda path, _: fn(tuple(str(key.key) for key in path)), params)


def _stack_of(parts: tuple[str, ...]) -> str:
    """("image", "blocks", "mlp", ...) -> "image_blocks"; "rest" for a parameter outside scanned blocks."""
    return "_".join(parts[: parts.index("blocks") + 1]) if "blocks" in parts else "rest"
