"""CLIP's loss: mean of the image->text and text->image cross-entropies (Radford et al. 2103.00020, figure 3).

With repeats="positives" the target of a row is spread evenly over all its positives (SupCon's L_out, Khosla et al.
2004.11362, eq. 2, with the positives in the denominator); with "ignore" repeats leave the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, Part
from clipjax.losses.loss import Inputs, Loss, Pairs, Uninformed, per_row
from clipjax.losses.reductions import LogSumExp, Sum
from clipjax.losses.tiles import scaled, similarities


def features(inputs: Inputs) -> tuple[dict, dict]:
    """The scale is a feature of each row, so that a tile can apply it and its gradient is one of the rows'."""
    return {"image": inputs.image_embedding, "scale": per_row(inputs.logit_scale, inputs)}, {
        "text": inputs.text_embedding
    }


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    s = logits(row, column)
    return both_sides(lambda s: {"lse": LogSumExp(without(s, pairs.ignored))}, s, pairs)


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    del row, column
    by_row, by_column = positive_means(r, c)
    return {"softmax": 0.5 * ((r["lse"] - by_row) + (c["lse"] - by_column))}


def logits(row: dict, column: dict) -> jax.Array:
    """[r, c] float32 scale x_i.y_j of a tile."""
    return similarities(scaled(row["image"], row["scale"]), column["text"])


def without(s: jax.Array, ignored: jax.Array | None) -> jax.Array:
    """s with -inf where a pair takes no part."""
    return s if ignored is None else jnp.where(ignored, -jnp.inf, s)


def both_sides(terms: Callable[[jax.Array], dict], s: jax.Array, pairs: Pairs) -> tuple[dict, dict]:
    """(row terms, column terms): terms(s), and what positive_means reads.

    The positives are taken from the tile, and each side's derivative is summed by itself: where an example is told
    from all others, a softmax of nearly 1 then meets the target of 1 before anything is rounded.
    """
    again = s * 1.0
    rows, columns = terms(s), terms(again)
    if not pairs.several:
        return rows | {"positive": Sum(jnp.where(pairs.positive, 0.5 * (s + again), 0.0))}, columns
    count = {"positives": Sum(pairs.positive.astype(jnp.float32))}
    rows, columns = (
        side | count | {"positive": Sum(jnp.where(pairs.positive, logit, 0.0))}
        for side, logit in ((rows, s), (columns, again))
    )
    return rows, columns


def positive_means(r: dict, c: dict) -> tuple[jax.Array, jax.Array]:
    """[B] mean logit of the positives of each row and of each column, from the results of both."""
    if "positives" in r:
        return r["positive"] / r["positives"], c["positive"] / c["positives"]
    return r["positive"], r["positive"]


def uninformed(pairs: int) -> Uninformed:
    """ln B: each of B candidates is as likely as the others."""
    return Uninformed(math.log(pairs), f"ln {pairs}", ("softmax",))


def make(config: LossConfig) -> Loss:
    del config
    return Loss(features, terms, per_example, uninformed=uninformed)


LOSS = Part(LossConfig, make)
