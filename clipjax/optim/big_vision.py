"""big_vision's Adam, Adafactor and Lion, with its kinds of weight decay (updates.py) and warm-up (schedules.py)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from clipjax.config import OptimizerConfig, Part, require
from clipjax.optim.updates import AdamConfig, MomentsConfig, adam, map_names, per_layer


@dataclass(frozen=True)
class BvAdamConfig(AdamConfig):
    """SigLIP: b2=0.95, moment_dtype="bfloat16"."""

    name: str = "bv_adam"
    first_warmup_step: ClassVar[int] = 0


@dataclass(frozen=True)
class BvAdafactorConfig(MomentsConfig):
    """big_vision sets moment_dtype="bfloat16"."""

    name: str = "bv_adafactor"
    first_warmup_step: ClassVar[int] = 0


@dataclass(frozen=True)
class BvLionConfig(MomentsConfig):
    name: str = "bv_lion"
    first_warmup_step: ClassVar[int] = 0


def make_adam(config: BvAdamConfig) -> optax.GradientTransformation:
    """big_vision's scale_by_adam."""
    return with_kernel_decay(config, adam(config))


def make_adafactor(config: BvAdafactorConfig) -> optax.GradientTransformation:
    """big_vision's Adafactor (Zhai et al. 2022).

    The second moment is factored for matrices of at least 32 x 32. Its decay is 1 - t^-0.8, at most b2. b1 is the
    decay of a first moment that is taken afterwards.
    """

    def second_moment_decay(count: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(config.b2, 1.0 - (count + 1.0) ** -exponent)

    direction = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate_fn=second_moment_decay),
        optax.ema(config.b1, debias=False, accumulator_dtype=config.moment_dtype),
    )
    return with_kernel_decay(config, per_layer(direction))


def make_lion(config: BvLionConfig) -> optax.GradientTransformation:
    """big_vision's scale_by_lion (SigLiT)."""
    return with_kernel_decay(config, optax.scale_by_lion(config.b1, config.b2, mu_dtype=config.moment_dtype))


def with_kernel_decay(config: OptimizerConfig, direction: optax.GradientTransformation) -> optax.GradientTransformation:
    """learning_rate * direction + weight_decay * kernel: decay follows the schedule, not the learning rate."""
    is_kernel = functools.partial(map_names, lambda parts: parts[-1] == "kernel")
    return optax.chain(
        direction,
        optax.scale(config.learning_rate),
        optax.add_decayed_weights(config.weight_decay, is_kernel),
    )


def check_kernel_decay(config: OptimizerConfig) -> None:
    """Refuses a weight decay that must have been meant for AdamW. Raises ConfigError."""
    require(
        config.weight_decay < 0.01,
        f"config.optimizer.weight_decay={config.weight_decay} with name='{config.name}' shrinks every kernel by that "
        "share at EACH step: big_vision does not multiply it by the learning rate. What AdamW calls "
        f"{config.weight_decay} is {config.weight_decay * config.learning_rate:.2g} here, that is times learning_rate.",
    )


ADAM = Part(BvAdamConfig, make_adam, check_kernel_decay)
ADAFACTOR = Part(BvAdafactorConfig, make_adafactor, check_kernel_decay)
LION = Part(BvLionConfig, make_lion, check_kernel_decay)
