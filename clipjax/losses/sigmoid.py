"""SigLIP's loss: -1/B sum_ij log sigmoid(z_ij (t x_i.y_j + b)), z = 1 for pairs, -1 otherwise (2303.15343, eq. 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.losses.collectives import AxisName, all_gather, ring, row_ids
from clipjax.losses.tiles import choose_tile, logits_tile, over_tiles, product


def dense(image_embedding: jax.Array, text_embedding: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array):
    """The reference: the whole [B, B] matrix, plain autodiff."""
    logits = logit_scale * logits_tile(image_embedding, text_embedding) + logit_bias
    z = 2 * jnp.eye(logits.shape[0]) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(z * logits), axis=1))


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

    Shapes as softmax.blockwise. Pairs do not know of each other, so one visit of a tile gives its loss and
    its gradients.

    all_gather: moves x and y once; 8 b B D FLOPs. ring: moves y and its gradient once; 6 b B D FLOPs.
    """
    rows = x.shape[0]
    tile = choose_tile(rows, tile)
    ids = row_ids(rows, axis_name)
    sx = x.astype(jnp.float32) * scale
    devices = jax.lax.axis_size(axis_name)
    batch = rows * devices
    zeros = jnp.zeros(x.shape, jnp.float32) if with_grads else None
    sums = (zeros, jnp.zeros((rows,)), jnp.zeros((rows,)) if with_grads else None)

    def visit(row, column, row_sums, dy):
        return _visit(row, column, row_sums, dy, bias)

    if comm == "ring" or devices == 1:

        def meet(row_sums, visitor):
            *visiting, dy = visitor
            row_sums, dy = over_tiles(visit, (sx, ids), tuple(visiting), row_sums, dy, tile)
            return row_sums, (*visiting, dy)

        sums, (*_, dy) = ring(meet, sums, (y, ids, zeros), axis_name)
    else:
        all_ids = jnp.arange(batch, dtype=jnp.int32)
        all_y = all_gather(y, axis_name)
        sums, _ = over_tiles(visit, (sx, ids), (all_y, all_ids), sums, None, tile)
        if with_grads:
            all_x = all_gather(sx, axis_name)
            _, dy = over_tiles(visit, (all_x, all_ids), (y, ids), (None, None, None), zeros, tile)
    dx, row_loss, row_weight = sums
    loss = jax.lax.psum(jnp.sum(row_loss), axis_name) / batch
    if not with_grads:
        return loss, None
    dx, dy = dx * (scale / batch), dy / batch
    dscale = jax.lax.psum(jnp.sum(x * dx), axis_name) / scale
    dbias = jax.lax.psum(jnp.sum(row_weight), axis_name) / batch
    return loss, (dx.astype(x.dtype), dy.astype(y.dtype), dscale, dbias)


def _visit(row, column, row_sums, dy, bias):
    """Adds one tile's losses and B dloss/ds, times what it multiplies; sums that are None are not wanted."""
    (sx, row_id), (y, column_id) = row, column
    dx, loss, weights = row_sums
    s = logits_tile(sx, y) + bias
    pair = row_id[:, None] == column_id[None, :]
    if loss is not None:
        loss = loss + jax.nn.softplus(jnp.where(pair, -s, s)).sum(1)
    weight = jnp.where(pair, -jax.nn.sigmoid(-s), jax.nn.sigmoid(s))
    if dx is not None:
        dx = dx + product(weight, y, contract=(1, 0))
    if weights is not None:
        weights = weights + weight.sum(1)
    if dy is not None:
        dy = dy + product(weight, sx, contract=(0, 0))
    return (dx, loss, weights), dy
