"""CLIP's loss with a share of every target spread evenly over the batch (Szegedy et al. 1512.00567, section 7).

The target of a row is (1 - e) on its positives and e / B on each of the B texts, e = config.loss.label_smoothing: as
torch.nn.functional.cross_entropy(label_smoothing=e). Ignored pairs take no part in the spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, Part
from clipjax.config.fields import OBJECTIVE, experiment
from clipjax.config.ranges import RATE
from clipjax.losses import softmax
from clipjax.losses.loss import Loss, Pairs
from clipjax.losses.reductions import LogSumExp, Sum


@dataclass(frozen=True)
class LabelSmoothingConfig(LossConfig):
    name: str = "label_smoothing"
    # share of every target that is spread over the batch
    label_smoothing: float = experiment(0.1, within=RATE, fixed=OBJECTIVE)


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    s = softmax.logits(row, column)
    counted = jnp.ones_like(s) if pairs.ignored is None else 1.0 - pairs.ignored

    def each(s: jax.Array) -> dict:
        return {"lse": LogSumExp(softmax.without(s, pairs.ignored)), "all": Sum(s * counted), "count": Sum(counted)}

    return softmax.both_sides(each, s, pairs)


def make(config: LabelSmoothingConfig) -> Loss:
    def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
        del row, column

        def cross_entropy(side: dict, positive: jax.Array) -> jax.Array:
            return side["lse"] - positive - config.label_smoothing * (side["all"] / side["count"] - positive)

        by_row, by_column = softmax.positive_means(r, c)
        return {"label_smoothing": 0.5 * (cross_entropy(r, by_row) + cross_entropy(c, by_column))}

    uninformed = lambda pairs: softmax.uninformed(pairs)._replace(parts=("label_smoothing",))  # noqa: E731
    return Loss(softmax.features, terms, per_example, uninformed=uninformed)


LOSS = Part(LabelSmoothingConfig, make)
