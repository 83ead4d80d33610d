"""Intra-modal negatives: NT-Xent over the 2B embeddings of both modalities (Chen et al. SimCLR 2002.05709, eq. 1).

An image's candidates are all texts and all OTHER images, and its positive is its text; likewise for a text. Mean over
the 2B anchors. Equals optax.losses.ntxent of the concatenated embeddings.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, Part
from clipjax.losses import softmax
from clipjax.losses.loss import Inputs, Loss, Pairs
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
    of_rows, of_columns = both_sides(lambda s: {"across": LogSumExp(without(s, pairs.ignored))}, across, pairs)
    within = {"images": LogSumExp(without(images, itself)), "texts": LogSumExp(without(texts, itself))}
    return of_rows | within, of_columns


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    del row, column
    by_row, by_column = positive_means(r, c)
    image = jnp.logaddexp(r["across"], r["images"]) - by_row
    text = jnp.logaddexp(c["across"], r["texts"]) - by_column
    return {"ntxent": 0.5 * (image + text)}


def make(config: LossConfig) -> Loss:
    del config
    return Loss(features, terms, per_example)


LOSS = Part(LossConfig, make)
