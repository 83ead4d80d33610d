"""The optimizers: one row each in OPTIMIZERS, with the weight decay of the code that it is named after.

Two dialects of weight decay, a factor of the learning rate apart (1000 at 1e-3), r(t) being the schedule:
  all others   p -= r(t) * learning_rate * (direction + weight_decay * p)     not norms, biases, scalars
  bv_...       p -= r(t) * (learning_rate * direction + weight_decay * p)     kernels only
so weight_decay=1e-4 of a big_vision config is 0.1 of AdamW at learning rate 1e-3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.config import OptimizerConfig

# Parameters that say how far or from where, not in which direction: AdamW and its relatives leave them alone.
NO_DECAY = ("scale", "bias", "logit_scale", "logit_bias", "cls_token", "probe", "ls_1", "ls_2")


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019 as torch.optim.AdamW."""
    return _with_decay(config, _adam(config))


def _lion(config: OptimizerConfig) -> optax.GradientTransformation:
    """Chen et al. 2023. eps is not used."""
    lion = optax.scale_by_lion(config.b1, config.b2, mu_dtype=config.moment_dtype)
    return _with_decay(config, lion)


def _lamb(config: OptimizerConfig) -> optax.GradientTransformation:
    """You et al. 2020; decay is part of the direction, and the trust ratio |parameter| / |direction| is taken
    where decay is (as the authors' code and timm's Lamb), for each layer."""
    return optax.chain(
        _adam(config),
        optax.add_decayed_weights(config.weight_decay, _decayed),
        _per_layer(optax.masked(optax.scale_by_trust_ratio(), _decayed)),
        optax.scale(config.learning_rate),
    )


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Shazeer & Stern 2018 as torch.optim.Adafactor: no first moment, update clipping 1, the learning rate
    relative to each parameter's root mean square (try 1e-2). b1, b2, eps and moment_dtype are not used."""
    direction = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return _with_decay(config, _per_layer(direction))


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Jordan 2024 for the matrices of attention and MLPs, each orthogonalised by itself (query, key and value
    are three); Adam for the rest. Updates are scaled to Adam's size (Liu et al. 2025: 0.2 sqrt(larger side)),
    so that one learning rate and weight decay serve both. b1 is the momentum of both (Muon's own: 0.95)."""
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.b1, mu_dtype=config.moment_dtype, weight_dimension_numbers=_matrix_axes
        ),
        optax.stateless_with_tree_map(lambda update, _: 0.2 * max(update.shape[0], update.shape[-1]) ** 0.5 * update),
    )
    labels = functools.partial(map_names, lambda parts: "muon" if _is_hidden_matrix(parts) else "adam")
    return _with_decay(config, _per_layer(optax.partition({"muon": muon, "adam": _adam(config)}, labels)))


def _bv_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """big_vision's scale_by_adam (SigLIP: b2=0.95, moment_dtype="bfloat16")."""
    return _with_big_vision_decay(config, _adam(config))


def _bv_lion(config: OptimizerConfig) -> optax.GradientTransformation:
    """big_vision's scale_by_lion (SigLiT)."""
    return _with_big_vision_decay(config, optax.scale_by_lion(config.b1, config.b2, mu_dtype=config.moment_dtype))


def _bv_adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """big_vision's Adafactor (Zhai et al. 2022): second moment factored from 32 x 32 on, its decay 1 - t^-0.8
    capped at b2, then a first moment b1 (moment_dtype="bfloat16" there). eps is not used."""

    def second_moment_decay(count: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(config.b2, 1.0 - (count + 1.0) ** -exponent)

    direction = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate_fn=second_moment_decay),
        optax.ema(config.b1, debias=False, accumulator_dtype=config.moment_dtype),
    )
    return _with_big_vision_decay(config, _per_layer(direction))


# Each: config -> gradients to updates at the schedule's peak, before the sign.
OPTIMIZERS: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "lamb": _lamb,
    "muon": _muon,
    "bv_adam": _bv_adam,
    "bv_adafactor": _bv_adafactor,
    "bv_lion": _bv_lion,
}


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moment_dtype)


def _with_decay(config: OptimizerConfig, direction: optax.GradientTransformation) -> optax.GradientTransformation:
    """learning_rate * (direction + weight_decay * parameter)."""
    return optax.chain(
        direction,
        optax.add_decayed_weights(config.weight_decay, _decayed),
        optax.scale(config.learning_rate),
    )


def _with_big_vision_decay(
    config: OptimizerConfig, direction: optax.GradientTransformation
) -> optax.GradientTransformation:
    """learning_rate * direction + weight_decay * kernel: the decay follows the schedule, not the rate."""
    return optax.chain(
        direction,
        optax.scale(config.learning_rate),
        optax.add_decayed_weights(
            config.weight_decay, functools.partial(map_names, lambda parts: parts[-1] == "kernel")
        ),
    )


def _per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """tx as if scanned blocks were unrolled: what it computes of a whole parameter (norms, factors, matrix
    products) is of one layer. Its state has a leading layer axis there, counters too."""
    stacked = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))
    labels = functools.partial(map_names, _stack_of)

    def partition(tree: Any) -> optax.GradientTransformation:
        names = set(jax.tree.leaves(labels(tree)))
        return optax.partition({name: tx if name == "rest" else stacked for name in names}, labels)

    return optax.GradientTransformation(
        lambda params: partition(params).init(params),
        lambda updates, state, params: partition(updates).update(updates, state, params),
    )


def _stack_of(parts: tuple[str, ...]) -> str:
    """("image", "blocks", "mlp", ...) -> "image_blocks"; "rest" for a parameter of no scanned block."""
    return "_".join(parts[: parts.index("blocks") + 1]) if "blocks" in parts else "rest"


def _is_hidden_matrix(parts: tuple[str, ...]) -> bool:
    return parts[-1] == "kernel" and ("attention" in parts or "mlp" in parts)


def _matrix_axes(params: Any) -> Any:
    """Input and output axis of each matrix; [width, 3, width] are three matrices, not one."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(0, leaf.ndim - 1), params)


def _decayed(params: Any) -> Any:
    return map_names(lambda parts: parts[-1] not in NO_DECAY, params)


def map_names(fn: Callable[[tuple[str, ...]], Any], params: Any) -> Any:
    """Tree of fn(("image", "blocks", "mlp", "up", "kernel")) for each leaf of a tree of nested dicts."""
    return jax.tree_util.tree_map_with_path(lambda path, _: fn(tuple(str(key.key) for key in path)), params)
