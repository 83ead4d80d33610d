"""comm="dense": the whole [B, B] matrix as one tile and plain autodiff, the textbook form."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import LossConfig
from clipjax.losses.comm.passes import MeanLoss
from clipjax.losses.loss import Loss
from clipjax.losses.reductions import Reductions
from clipjax.losses.tiles import count, ids, pairs


def mean_loss(loss: Loss, config: LossConfig, mesh: Mesh | None) -> MeanLoss:
    """The row of COMMS. On a mesh, GSPMD chooses what moves."""
    del mesh

    def value(rows, columns, pair_id):
        own = ids(jnp.arange(count(rows), dtype=jnp.int32), pair_id)
        results = [
            Reductions(terms).finish({name: term.state(axis) for name, term in terms.items()})
            for terms, axis in zip(loss.terms(rows, columns, pairs(own, own, config.repeats)), (1, 0), strict=True)
        ]
        if loss.per_example is None:
            return sum(results[0].values()).mean(), {}
        parts = {name: part.mean() for name, part in loss.per_example(*results, rows, columns).items()}
        return sum(parts.values()), parts

    return value
