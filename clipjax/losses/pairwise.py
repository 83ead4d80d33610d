"""Losses that are a sum over pairs which do not know of each other: one function of one pair is all there is to say."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig
from clipjax.losses import softmax
from clipjax.losses.pairs import Inputs, Loss, Pairs
from clipjax.losses.reductions import Sum


def pairwise(pair_loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Loss:
    """The Loss 1/B sum_ij pair_loss(logit_ij, positive_ij) with logit_ij = logit_scale x_i.y_j + logit_bias.

    pair_loss: elementwise and differentiable; logit [r, c] float32, positive [r, c] bool -> [r, c] float32.
    Pairs ignored by config.loss.repeats add nothing.
    """

    def features(inputs: Inputs, config: LossConfig) -> tuple[dict, dict]:
        rows, columns = softmax.features(inputs, config)
        return rows | {"bias": jnp.broadcast_to(inputs.logit_bias, rows["scale"].shape)}, columns

    def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
        logit = softmax.logits(row, column) + row["bias"][:, None]
        loss = pair_loss(logit, pairs.positive)
        return {"loss": Sum(loss if pairs.ignored is None else jnp.where(pairs.ignored, 0.0, loss))}, {}

    return Loss(features, terms)
