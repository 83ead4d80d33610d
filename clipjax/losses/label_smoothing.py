"""CLIP's loss with a share of every target spread evenly over the batch (Szegedy et al. 1512.00567, section 7).

The target of a row is (1 - e) on its positives and e / B on each of the B texts, e = config.loss.label_smoothing: as
torch.nn.functional.cross_entropy(label_smoothing=e). Ignored pairs take no part in the spread.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig
from clipjax.losses import softmax
from clipjax.losses.pairs import Inputs, Loss, Pairs
from clipjax.losses.reductions import LogSumExp, Sum


def features(inputs: Inputs, config: LossConfig) -> tuple[dict, dict]:
    rows, columns = softmax.features(inputs, config)
    return rows | {"smoothing": jnp.full_like(rows["scale"], config.label_smoothing)}, columns


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    s = softmax.logits(row, column)
    counted = jnp.ones_like(s) if pairs.ignored is None else 1.0 - pairs.ignored
    found = {
        "lse": LogSumExp(softmax.without(s, pairs.ignored)),
        "all": Sum(s * counted),
        "count": Sum(counted),
        **softmax.positive_terms(s, pairs),
    }
    return found, found


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    def cross_entropy(side: dict) -> jax.Array:
        positive = softmax.positive_mean(side, row, column)
        return side["lse"] - positive - row["smoothing"] * (side["all"] / side["count"] - positive)

    return {"label_smoothing": 0.5 * (cross_entropy(r) + cross_entropy(c))}


LOSS = Loss(features, terms, per_example)
