"""Muon (Jordan 2024) for the matrices of attention and MLPs, Adam for all other parameters.

Each matrix is orthogonalised by itself; query, key and value count as three. Updates are scaled to the size of Adam's
(Liu et al. 2025: 0.2 sqrt(larger side)), so that one learning rate and weight decay serve both. b1 is the momentum of
both (Muon's own default: 0.95).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import optax

from clipjax.config import Part
from clipjax.optim.updates import AdamConfig, adam, map_names, per_layer, with_decay


@dataclass(frozen=True)
class MuonConfig(AdamConfig):
    name: str = "muon"


def make(config: MuonConfig) -> optax.GradientTransformation:
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.b1, mu_dtype=config.moment_dtype, weight_dimension_numbers=_matrix_axes
        ),
        optax.stateless_with_tree_map(lambda update, _: 0.2 * max(update.shape[0], update.shape[-1]) ** 0.5 * update),
    )
    labels = functools.partial(map_names, lambda parts: "muon" if _is_hidden_matrix(parts) else "adam")
    return with_decay(config, per_layer(optax.partition({"muon": muon, "adam": adam(config)}, labels)))


def _is_hidden_matrix(parts: tuple[str, ...]) -> bool:
    return parts[-1] == "kernel" and ("attention" in parts or "mlp" in parts)


def _matrix_axes(params: Any) -> Any:
    """Input and output axis of each matrix; [width, 3, width] are three matrices, not one."""
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(0, leaf.ndim - 1), params)


OPTIMIZER = Part(MuonConfig, make)
