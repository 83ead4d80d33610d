"""Intra-modal negatives: NT-Xent over the 2B embeddings of both modalities (Chen et al. SimCLR 2002.05709, eq. 1).

An image's candidates are all texts and all OTHER images, and its positive is its text; likewise for a text. Mean over
the 2B anchors. Equals optax.losses.ntxent of the concatenated embeddings.
"""

from __future__ import annotations

import math

import jax

from clipjax.config import LossConfig, Part
from clipjax.losses import softmax
from clipjax.losses.loss import Inputs, Loss, Pairs, Uninformed
from clipjax.losses.reductions import LogSumExp
from clipjax.losses.softmax import both_sides, positive_means, without
from clipjax.losses.tiles import scaled, similarities


def features(inputs: Inputs) -> tuple[dict, dict]:
    rows, columns = softmax.features(inputs)
    return rows | {"text": inputs.text_embedding}, columns | {"image": inputs.image_embedding}


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    across = softmax.logits(row, column)
    # Within a modality, neither an example itself nor a repeat of it is one of its negatives.
    itself = pairs.positive if pairs.ignored is None else pairs.positive | pairs.ignored
    images, texts = (similarities(scaled(row[name], row["scale"]), column[name]) for name in ("image", "text"))
    images, texts = without(images, itself), without(texts, itself)
    rows, columns = both_sides(lambda s: {"lse": without(s, pairs.ignored)}, across, pairs)
    # Texts are compared with texts in both orders, so an anchor's candidates are all in its row, or all in its column.
    return (
        rows | {"lse": LogSumExp(rows["lse"], also=images)},
        columns | {"lse": LogSumExp(columns["lse"], also=texts)},
    )


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    del row, column
    by_row, by_column = positive_means(r, c)
    return {"ntxent": 0.5 * ((r["lse"] - by_row) + (c["lse"] - by_column))}


def uninformed(pairs: int) -> Uninformed:
    """ln (2B - 1): each of B texts and B - 1 other images is as likely as the others."""
    return Uninformed(math.log(2 * pairs - 1), f"ln {2 * pairs - 1}")


def make(config: LossConfig) -> Loss:
    del config
    return Loss(features, terms, per_example, uninformed=uninformed)


LOSS = Part(LossConfig, make)
