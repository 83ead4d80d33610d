"""CLIP's loss: mean of the image->text and text->image cross-entropies (Radford et al. 2103.00020, figure 3).

With repeats="positives" the target of a row is spread evenly over all its positives (SupCon's L_out, Khosla et al.
2004.11362, eq. 2, with the positives in the denominator); with "ignore" repeats leave the denominator.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, Part
from clipjax.losses.loss import Inputs, Loss, Pairs
from clipjax.losses.reductions import LogSumExp, Sum
from clipjax.losses.tiles import scaled, similarities


def features(inputs: Inputs) -> tuple[dict, dict]:
    """The scale is a feature of each row, so that a tile can apply it and its gradient is one of the rows'."""
    scale = jnp.broadcast_to(inputs.logit_scale, inputs.image_embedding.shape[:1])
    return {"image": inputs.image_embedding, "scale": scale}, {"text": inputs.text_embedding}


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    s = logits(row, column)
    both = {"lse": LogSumExp(without(s, pairs.ignored))} | positive_terms(s, pairs)
    return both, both


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    return {"softmax": 0.5 * (r["lse"] + c["lse"] - positive_mean(r, row, column) - positive_mean(c, row, column))}


def logits(row: dict, column: dict) -> jax.Array:
    """[r, c] float32 scale x_i.y_j of a tile."""
    return similarities(scaled(row["image"], row["scale"]), column["text"])


def without(s: jax.Array, ignored: jax.Array | None) -> jax.Array:
    """s with -inf where a pair takes no part."""
    return s if ignored is None else jnp.where(ignored, -jnp.inf, s)


def positive_terms(s: jax.Array, pairs: Pairs) -> dict:
    """Terms for positive_mean: none where the only positive is the diagonal, which needs no tile."""
    if not pairs.several:
        return {}
    return {"positive": Sum(jnp.where(pairs.positive, s, 0.0)), "positives": Sum(pairs.positive.astype(jnp.float32))}


def positive_mean(results: dict, row: dict, column: dict) -> jax.Array:
    """[B] mean logit of an example's positives."""
    if "positive" in results:
        return results["positive"] / results["positives"]
    # The scale last: the same sum is its gradient, and no [B, D] product with it is kept.
    return row["scale"] * jnp.sum(row["image"].astype(jnp.float32) * column["text"], axis=1)


def make(config: LossConfig) -> Loss:
    del config
    return Loss(features, terms, per_example)


LOSS = Part(LossConfig, make)
