"""Decoupled contrastive learning: the positive leaves the denominator (Yeh et al. 2110.06848, eq. 4 and section 3.2).

Mean over both directions of log sum_{j not positive} exp(s_ij) - s_ii. A row without any negative has no such loss; it
needs a global batch of at least two different pairs.
"""

from __future__ import annotations

import jax

from clipjax.losses.pairs import Loss, Pairs
from clipjax.losses.reductions import LogSumExp
from clipjax.losses.softmax import features, logits, positive_mean, positive_terms, without


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    s = logits(row, column)
    found = {"lse": LogSumExp(without(without(s, pairs.positive), pairs.ignored))} | positive_terms(s, pairs)
    return found, found


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    return {"dcl": 0.5 * (r["lse"] + c["lse"] - positive_mean(r, row, column) - positive_mean(c, row, column))}


LOSS = Loss(features, terms, per_example)
