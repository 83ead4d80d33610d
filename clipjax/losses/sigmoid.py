"""SigLIP's loss: -1/B sum_ij log sigmoid(z_ij (t x_i.y_j + b)), z = 1 for pairs, -1 otherwise (2303.15343, eq. 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.losses.pairwise import pairwise


def pair_loss(logit: jax.Array, positive: jax.Array) -> jax.Array:
    """-log sigmoid(z logit)."""
    return jax.nn.softplus(jnp.where(positive, -logit, logit))


LOSS = pairwise(pair_loss)
