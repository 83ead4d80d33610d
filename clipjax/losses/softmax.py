"""CLIP's loss: mean of the image->text and text->image cross-entropies (Radford et al. 2103.00020, figure 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.losses.collectives import AxisName, all_gather, own_rows, ring, row_ids
from clipjax.losses.tiles import choose_tile, logits_tile, over_tiles, product

EMPTY = -jnp.inf  # log of an empty sum


def dense(image_embedding: jax.Array, text_embedding: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array):
    """The reference: the whole [B, B] matrix, plain autodiff. logit_bias has no effect on a softmax."""
    del logit_bias
    logits = logit_scale * logits_tile(image_embedding, text_embedding)
    diagonal = jnp.diagonal(logits)
    rows, columns = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(0.5 * (rows + columns) - diagonal)


def blockwise(
    x: jax.Array,
    y: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    axis_name: AxisName,
    comm: str,
    tile: int,
    with_grads: bool,
):
    """Per device, inside shard_map: (loss, (dx, dy, dscale, dbias)), or (loss, None) without gradients.

    x: [b, D] this device's image embeddings; y: [b, D] its text embeddings; scale, bias: the same everywhere.
    loss: of the global batch B = devices * b. dx, dy: [b, D] float32, the global loss's gradient for these rows.

    With s = scale * x y^T, r_i and c_j the log-sum-exps of its rows and columns,
    dloss/ds_ij = (exp(s_ij - r_i) + exp(s_ij - c_j) - 2 [i = j]) / 2B: two vectors of length B stand for the
    whole matrix, so a first pass finds r and c with a running maximum and a second makes the gradients.

    all_gather: moves x and y once and 3 B scalars; 2 b B D + 8 b B D FLOPs.
    ring: moves y twice and its gradient once; 8 b B D FLOPs, memory of two devices' rows and a tile.
    """
    rows = x.shape[0]
    tile = choose_tile(rows, tile)
    ids = row_ids(rows, axis_name)
    # The scale is folded into the images once instead of into every tile.
    sx = x.astype(jnp.float32) * scale
    positive = jnp.sum(sx * y, axis=1)
    empty = lambda n: (jnp.full((n,), EMPTY), jnp.zeros((n,)))  # noqa: E731
    batch = rows * jax.lax.axis_size(axis_name)
    one_device = jax.lax.axis_size(axis_name) == 1

    if comm == "ring" or one_device:

        def meet(row_sums, visitor):
            y, column_sums = visitor
            row_sums, column_sums = over_tiles(_sum_exp, sx, y, row_sums, column_sums, tile)
            return row_sums, (y, column_sums)

        row_sums, (y, column_sums) = ring(meet, empty(rows), (y, empty(rows)), axis_name)
        r, c = _log(row_sums), _log(column_sums)
    else:
        all_x, all_y = all_gather((sx, y), axis_name)
        row_sums, (m, total) = over_tiles(_sum_exp, sx, all_y, empty(rows), empty(batch), tile)
        top = jax.lax.pmax(m, axis_name)
        all_c = _log((top, jax.lax.psum(total * jnp.exp(m - top), axis_name)))
        r, c = _log(row_sums), own_rows(all_c, rows, axis_name)

    loss = jax.lax.psum(jnp.sum(0.5 * (r + c) - positive), axis_name) / batch
    if not with_grads:
        return loss, None

    zeros = jnp.zeros(x.shape, jnp.float32)
    if comm == "ring" or one_device:

        def meet_again(dx, visitor):
            *visiting, dy = visitor
            dx, dy = over_tiles(_gradients, (sx, r, ids), tuple(visiting), dx, dy, tile)
            return dx, (*visiting, dy)

        dx, (*_, dy) = ring(meet_again, zeros, (y, c, ids, zeros), axis_name)
    else:
        all_ids = jnp.arange(batch, dtype=jnp.int32)
        all_r = all_gather(r, axis_name)
        dx, _ = over_tiles(_gradients, (sx, r, ids), (all_y, all_c, all_ids), zeros, None, tile)
        _, dy = over_tiles(_gradients, (all_x, all_r, all_ids), (y, c, ids), None, zeros, tile)
    dx, dy = dx * (scale / (2 * batch)), dy / (2 * batch)  # dy was summed over rows that hold the scale already
    dscale = jax.lax.psum(jnp.sum(x * dx), axis_name) / scale
    return loss, (dx.astype(x.dtype), dy.astype(y.dtype), dscale, jnp.zeros_like(bias))


def _sum_exp(sx, y, row_sums, column_sums):
    """Adds one tile to the running (maximum, sum of exponentials below it) of its rows and columns."""
    s = logits_tile(sx, y)

    def add(sums, axis):
        m, total = sums
        top = jnp.maximum(m, s.max(axis))
        shifted = jnp.exp(s - jnp.expand_dims(top, axis)).sum(axis)
        return top, total * jnp.exp(m - top) + shifted

    return add(row_sums, 1), add(column_sums, 0)


def _gradients(row, column, dx, dy):
    """Adds one tile's part of 2B dloss/ds times y to dx, and times the scaled x to dy; None: not wanted."""
    (sx, r, row_id), (y, c, column_id) = row, column
    s = logits_tile(sx, y)
    weight = jnp.exp(s - r[:, None]) + jnp.exp(s - c[None, :])
    weight = jnp.where(row_id[:, None] == column_id[None, :], weight - 2.0, weight)
    if dx is not None:
        dx = dx + product(weight, y, contract=(1, 0))
    if dy is not None:
        dy = dy + product(weight, sx, contract=(0, 0))
    return dx, dy


def _log(sums):
    m, total = sums
    return m + jnp.log(total)
