"""SigLIP's loss: -1/B sum_ij log sigmoid(z_ij (t x_i.y_j + b)), z = 1 for pairs, -1 otherwise (2303.15343, eq. 2)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from clipjax.losses.loss import Uninformed
from clipjax.losses.pairwise import pairwise


def pair_loss(logit: jax.Array, positive: jax.Array) -> jax.Array:
    """-log sigmoid(z logit)."""
    return jax.nn.softplus(jnp.where(positive, -logit, logit))


def uninformed(pairs: int) -> Uninformed:
    """ln B + (B - 1) ln(B / (B - 1)), about ln B + 1: all logits are -ln(B - 1), the best constant. The loss begins
    above it, and falls to it as the bias learns."""
    return Uninformed(
        math.log(pairs) + (pairs - 1) * math.log(pairs / (pairs - 1)),
        f"ln {pairs} + {pairs - 1} ln {pairs}/{pairs - 1}",
    )


LOSS = pairwise(pair_loss, uninformed)
