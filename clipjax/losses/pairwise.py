"""Losses that are a sum over independent pairs: one function of one pair defines the loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, ModelConfig, Part, require
from clipjax.losses import softmax
from clipjax.losses.loss import Inputs, Loss, Pairs, Uninformed, per_row
from clipjax.losses.reductions import Sum

PairLoss = Callable[[jax.Array, jax.Array], jax.Array]


def pairwise(pair_loss: PairLoss, uninformed: Callable[[int], Uninformed] | None = None) -> Part:
    """The row of LOSSES for a sum over pairs without options of its own.

    uninformed: the Loss's where each row has one positive; with several, the sum has no such bound.
    """

    def make(config: LossConfig) -> Loss:
        return sum_over_pairs(pair_loss)._replace(uninformed=None if config.repeats == "positives" else uninformed)

    return Part(LossConfig, make, needs_bias)


def sum_over_pairs(pair_loss: PairLoss) -> Loss:
    """The Loss 1/B sum_ij pair_loss(logit_ij, positive_ij) with logit_ij = logit_scale x_i.y_j + logit_bias.

    pair_loss: elementwise and differentiable; logit [r, c] float32, positive [r, c] bool -> [r, c] float32.
    Pairs ignored by config.loss.repeats add nothing.
    """

    def features(inputs: Inputs) -> tuple[dict, dict]:
        rows, columns = softmax.features(inputs)
        return rows | {"bias": per_row(inputs.logit_bias, inputs)}, columns

    def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
        logit = softmax.logits(row, column) + row["bias"][:, None]
        loss = pair_loss(logit, pairs.positive)
        return {"loss": Sum(loss if pairs.ignored is None else jnp.where(pairs.ignored, 0.0, loss))}, {}

    return Loss(features, terms)


def needs_bias(config: LossConfig, model: ModelConfig) -> None:
    """Refuses a model without a logit bias, which balances one positive against B - 1 negatives. Raises ConfigError."""
    require(
        model.logit_bias_init is not None,
        f"config.loss.name='{config.name}' needs a learnable bias: set config.model.logit_bias_init=-10.0 (SigLIP).",
    )
