"""Decoupled contrastive learning: the positive leaves the denominator (Yeh et al. 2110.06848, eq. 4 and section 3.2).

Mean over both directions of log sum_{j not positive} exp(s_ij) - s_ii. It is not defined for a row without negatives,
so the global batch must have at least two different pairs.
"""

from __future__ import annotations

import math

import jax

from clipjax.config import LossConfig, Part
from clipjax.losses.loss import Loss, Pairs, Uninformed
from clipjax.losses.reductions import LogSumExp
from clipjax.losses.softmax import both_sides, features, logits, positive_means, without


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    others = pairs.positive if pairs.ignored is None else pairs.positive | pairs.ignored
    return both_sides(lambda s: {"lse": LogSumExp(without(s, others))}, logits(row, column), pairs)


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    del row, column
    by_row, by_column = positive_means(r, c)
    return {"dcl": 0.5 * ((r["lse"] - by_row) + (c["lse"] - by_column))}


def uninformed(pairs: int) -> Uninformed:
    """ln (B - 1): the positive is no candidate."""
    return Uninformed(math.log(pairs - 1), f"ln {pairs - 1}")


def make(config: LossConfig) -> Loss:
    del config
    return Loss(features, terms, per_example, uninformed=uninformed)


LOSS = Part(LossConfig, make)
