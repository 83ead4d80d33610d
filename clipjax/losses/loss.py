"""What a loss is: a description of ONE tile of the matrix of all pairs, from which everything else follows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from clipjax.losses.reductions import in_pairs


class Inputs(NamedTuple):
    """What a loss may read: arrays of the global batch, the first dimension sharded over the batch axes."""

    image_embedding: jax.Array  # [B, D] L2-normalised
    text_embedding: jax.Array  # [B, D] L2-normalised
    logit_scale: jax.Array  # ()
    logit_bias: jax.Array  # ()
    pair_id: jax.Array | None = None  # [B] int32; equal: the captions mean the same; -1: unlike any other
    teacher_image_embedding: jax.Array | None = None  # [B, D of the teacher] L2-normalised
    teacher_text_embedding: jax.Array | None = None  # [B, D of the teacher] L2-normalised
    teacher_logit_scale: jax.Array | None = None  # ()
    caption_nll: jax.Array | None = None  # [B] float32, summed over a caption's tokens
    caption_tokens: jax.Array | None = None  # [B] float32, number of tokens in that sum
    shards: int = 1  # devices over which the first dimension is sharded, in equal parts


class Pairs(NamedTuple):
    """Masks of one tile, [r, c] bool."""

    diagonal: jax.Array  # image i with its own text
    positive: jax.Array  # the diagonal, and repeats where config.loss.repeats="positives"
    ignored: jax.Array | None  # repeats where config.loss.repeats="ignore"; None: no pair is ignored
    several: bool  # whether `positive` may hold more than the diagonal


class Uninformed(NamedTuple):
    """What a loss is at least while the similarities tell pairs from others no better than chance."""

    value: float
    text: str  # the value as a formula, such as "ln 1024"
    parts: tuple[str, ...] = ()  # the metrics whose sum it is; (): the whole loss


class Loss(NamedTuple):
    """A loss with its options filled in. Its value is the mean of per_example over the global batch, plus `extra`."""

    # Inputs -> (rows, columns): dicts of [B, ...] float32
    features: Callable
    # (rows, columns, Pairs) of one tile -> (row_terms, column_terms): dicts of reductions of [r, c]
    terms: Callable
    # (row_results, column_results, rows, columns) -> dict of [B] float32, summed, each also a metric.
    # None: the sum of the row terms, all of which are Sum; this takes one pass over the tiles instead of two.
    per_example: Callable | None = None
    # Inputs -> dict of () float32, added to the loss, each also a metric; plain JAX on global arrays
    extra: Callable | None = None
    needs: tuple[str, ...] = ()  # names of Inputs that must not be None
    # pairs in the global batch, 2 or more -> what the loss is for towers that have learned nothing: the least that it
    # can be where all similarities are equal. None: the loss makes no statement.
    uninformed: Callable[[int], Uninformed] | None = None


def per_row(number: jax.Array, inputs: Inputs) -> jax.Array:
    """[B] float32: a number of the whole batch, such as the scale, as a feature of every row.

    As jnp.broadcast_to, but its gradient, a sum over the batch, is added up in pairs on every device.
    """
    return _spread(jnp.asarray(number, jnp.float32), len(inputs.image_embedding), inputs.shards)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(number: jax.Array, batch: int, shards: int) -> jax.Array:
    return jnp.broadcast_to(number, (batch,))


_spread.defvjp(
    lambda number, batch, shards: (_spread(number, batch, shards), None),
    lambda batch, shards, _, g: (in_pairs(g.reshape(shards, -1)).sum(),),
)
