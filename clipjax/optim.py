"""Optimisers and learning-rate schedules, by name, through optax.

Weight decay comes in two dialects that differ by a factor of the learning rate (1000 at lr 1e-3):
  decoupled  p -= lr(t) * (update + weight_decay * p)             adamw, adafactor, lion, lamb, muon
  big_vision p -= lr(t) * update + lr(t)/lr_peak * weight_decay * p     bv_adam, bv_adafactor; kernels only
so that weight_decay=1e-4 in a big_vision paper is weight_decay=0.1 of AdamW at lr 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from clipjax.config import OptimizerConfig, nearest, require
from clipjax.mesh import path_name

Params = Any
NO_DECAY = {"bias", "scale", "cls_token", "probe", "logit_scale", "logit_bias"}


def make_optimizer(config: OptimizerConfig, params: Params, total_steps: int) -> optax.GradientTransformation:
    """Everything between gradients and updates: clipping, the optimiser, decay, schedule, per-tower factors.

    params: the parameter tree, or its shapes; only structure, names and shapes are used.
    A tower with learning-rate multiplier 0 gets zero updates and has no optimiser state.
    Raises ConfigError for an unknown name or a value out of range.
    """
    check_optimizer(config)
    tx = OPTIMIZERS[config.name](config, make_schedule(config, total_steps), params)
    if config.grad_clip_norm > 0:
        tx = optax.chain(optax.clip_by_global_norm(config.grad_clip_norm), tx)
    factors = {"image": config.image_lr_multiplier, "text": config.text_lr_multiplier}
    if any(factor != 1 for factor in factors.values()):
        tx = optax.chain(tx, _scale_towers(factors))
    frozen = {tower for tower, factor in factors.items() if factor == 0}
    if frozen:
        labels = {
            name: jax.tree.map(lambda _, n=name: "frozen" if n in frozen else "trained", tree)
            for name, tree in params.items()
        }
        tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
    return tx


def make_schedule(config: OptimizerConfig, total_steps: int) -> Callable[[Any], jax.Array]:
    """step (0-based) -> learning rate, float32.

    Warm-up is lr (step + 1) / warmup_steps, so that the first step is not wasted (open_clip scheduler.py);
    cosine and linear then fall to final_fraction * lr at total_steps; rsqrt is
    lr / sqrt(1 + (step - warmup) / timescale) (big_vision utils.py); rsqrt and constant may end in a linear
    cooldown to zero.
    """
    schedule, warmup = config.schedule, config.schedule.warmup_steps

    def learning_rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        after = jnp.maximum(step - warmup, 0.0)
        progress = jnp.clip(after / max(total_steps - warmup, 1), 0.0, 1.0)
        if schedule.name in ("cosine", "linear"):
            shape = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if schedule.name == "cosine" else 1 - progress
            factor = schedule.final_fraction + (1 - schedule.final_fraction) * shape
        else:
            factor = jnp.where(schedule.name == "rsqrt", (1 + after / schedule.rsqrt_timescale) ** -0.5, 1.0)
            if schedule.cooldown_steps:
                factor *= jnp.clip((total_steps - step) / schedule.cooldown_steps, 0.0, 1.0)
        if warmup:
            factor *= jnp.minimum(1.0, (step + 1) / warmup)
        return config.learning_rate * factor

    return learning_rate


def adamw(config: OptimizerConfig, schedule: optax.Schedule, params: Params) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moment_dtype)
    return _decoupled(config, schedule, params, adam)


def adafactor(config: OptimizerConfig, schedule: optax.Schedule, params: Params) -> optax.GradientTransformation:
    """Factored second moments, update clipping at RMS 1, momentum b1 (1804.04235), without relative step sizes."""
    return _decoupled(
        config, schedule, params, _factored(config, b2_cap=config.b2), optax.clip_by_block_rms(1.0), _momentum(config)
    )


def lion(config: OptimizerConfig, schedule: optax.Schedule, params: Params) -> optax.GradientTransformation:
    """2302.06675."""
    sign = optax.scale_by_lion(config.b1, config.b2, mu_dtype=config.moment_dtype)
    return _decoupled(config, schedule, params, sign)


def lamb(config: OptimizerConfig, schedule: optax.Schedule, params: Params) -> optax.GradientTransformation:
    """Adam whose update, decay included, is rescaled layer by layer to the parameter's norm (1904.00962)."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moment_dtype)
    return optax.chain(
        adam,
        optax.add_decayed_weights(config.weight_decay, decay_mask(params)),
        _scale_by_layer_trust_ratio(),
        optax.scale_by_learning_rate(schedule),
    )


def muon(config: OptimizerConfig, schedule: optax.Schedule, params: Params) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices inside blocks and heads, Adam for the rest (2502.16982, rms 0.2).

    q, k and v are orthogonalised one by one, and so is every layer of a scanned stack.
    """
    return contrib.muon(
        schedule,
        weight_decay=config.weight_decay,
        weight_decay_mask=decay_mask(params),
        mu_dtype=config.moment_dtype,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=muon_axes(params),
        consistent_rms=0.2,
    )


def bv_adam(config: OptimizerConfig, schedule: optax.Schedule, params: Params) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moment_dtype)
    return _big_vision(config, schedule, params, adam)


def bv_adafactor(config: OptimizerConfig, schedule: optax.Schedule, params: Params) -> optax.GradientTransformation:
    """big_vision's Adafactor (Scaling ViTs, 2106.04560, section 3.4): b2 is the cap (0.999 there), b1 the momentum."""
    return _big_vision(config, schedule, params, _factored(config, b2_cap=config.b2), _momentum(config))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
    "lion": lion,
    "lamb": lamb,
    "muon": muon,
    "bv_adam": bv_adam,
    "bv_adafactor": bv_adafactor,
}


def decay_mask(params: Params) -> Params:
    """True where decoupled weight decay applies: kernels, token and position embeddings. By name, so that a
    scanned stack's biases, which have two dimensions, are not taken for matrices."""
    return _map_names(lambda name, _: name.rsplit("/", 1)[-1] not in NO_DECAY, params)


def muon_axes(params: Params) -> Params:
    """MuonDimensionNumbers for hidden matrices, None elsewhere; axes count from the end: leading ones are layers."""

    def axes(name: str, _: Any) -> contrib.MuonDimensionNumbers | None:
        hidden = ("/attention/" in name or "/mlp/" in name) and name.endswith("/kernel")
        if not hidden:
            return None
        return contrib.MuonDimensionNumbers(-3 if "/qkv/" in name else -2, -1)

    return _map_names(axes, params)


def check_optimizer(config: OptimizerConfig) -> None:
    """Raises ConfigError for an unknown optimiser or a value out of its range."""
    require(
        config.name in OPTIMIZERS,
        f"config.optimizer.name='{config.name}' is unknown.{nearest(config.name, OPTIMIZERS)}",
    )
    for name in ("b1", "b2", "ema_decay"):
        value = getattr(config, name)
        require(0 <= value < 1, f"config.optimizer.{name}={value} must be at least 0 and below 1.")
    for name in ("learning_rate", "eps"):
        require(getattr(config, name) > 0, f"config.optimizer.{name}={getattr(config, name)} must be positive.")
    for name in ("weight_decay", "grad_clip_norm", "image_lr_multiplier", "text_lr_multiplier"):
        require(getattr(config, name) >= 0, f"config.optimizer.{name}={getattr(config, name)} must not be negative.")


def _decoupled(config, schedule, params, *transforms) -> optax.GradientTransformation:
    return optax.chain(
        *transforms,
        optax.add_decayed_weights(config.weight_decay, decay_mask(params)),
        optax.scale_by_learning_rate(schedule),
    )


def _big_vision(config, schedule, params, *transforms) -> optax.GradientTransformation:
    kernels = _map_names(lambda name, _: name.endswith("/kernel"), params)
    return optax.chain(
        *transforms,
        optax.scale(config.learning_rate),
        optax.add_decayed_weights(config.weight_decay, kernels),
        optax.scale_by_learning_rate(lambda step: schedule(step) / config.learning_rate),
    )


def _factored(config: OptimizerConfig, b2_cap: float) -> optax.GradientTransformation:
    return optax.scale_by_factored_rms(
        min_dim_size_to_factor=32,
        epsilon=1e-30,
        decay_rate_fn=lambda step, exponent: jnp.minimum(b2_cap, 1.0 - (jnp.float32(step) + 1.0) ** -exponent),
    )


def _momentum(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.b1 == 0:
        return optax.identity()
    return optax.ema(config.b1, debias=False, accumulator_dtype=config.moment_dtype)


def _scale_towers(factors: dict[str, float]) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: {
            name: jax.tree.map(lambda u, n=name: u * factors.get(n, 1.0), tree) for name, tree in updates.items()
        }
    )


def _scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """updates * |param| / |update|, norms over one layer's array: the first axis of a scanned stack is not summed."""

    def scale(updates: Params, params: Params) -> Params:
        def one(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
            axes = tuple(range(1 if "/blocks/" in name else 0, update.ndim))
            norm = lambda a: jnp.sqrt(jnp.sum(jnp.square(a), axis=axes, keepdims=True))  # noqa: E731
            p, u = norm(param), norm(update)
            return update * jnp.where((p > 0) & (u > 0), p / jnp.where(u > 0, u, 1.0), 1.0)

        return _map_names(one, updates, params)

    return optax.stateless(scale)


def _map_names(function: Callable, tree: Params, *rest: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)
