"""A loss over all pairs of the global batch, exact on any mesh, from a description of ONE tile of the pairs.

A strategy lets each row meet each column. The first pass collects the loss's reductions of rows and columns, the second
computes the gradient. A loss that is a plain sum over pairs does both in one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clipjax.config import LossConfig
from clipjax.losses.collectives import row_ids
from clipjax.losses.loss import Loss
from clipjax.losses.reductions import Sum
from clipjax.losses.tiles import RowSums, Side, Tiles, count, ids
from clipjax.mesh import BATCH_AXES, batch_shards

Tree = Any
# (row features, column features, pair_id) -> (mean of the loss over the global batch, its parts), differentiable
MeanLoss = Callable[[Tree, Tree, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]


class Strategy(NamedTuple):
    """How each row of the global batch meets each column. Both functions run on all devices at the same time.

    collect(tiles, rows, columns) -> (states of these rows, results of these columns, kept): the first pass.
      rows, columns: Side, this device's own. kept: whatever `differentiate` can use again, or None.
    differentiate(tiles, rows, columns, row_sums, column_gradients, kept) -> (row_sums, column_gradients): adds all
      pairs that these rows, and these columns, are part of. column_gradients=None: neither gradient is wanted.
      kept: collect's, or None where there was no first pass.
    """

    collect: Callable
    differentiate: Callable


def by_tiles(strategy: Strategy) -> Callable[[Loss, LossConfig, Mesh], MeanLoss]:
    """The row of COMMS for a strategy.

    The custom derivative is around shard_map, so no collective is ever differentiated: what each device computes for
    its rows is the gradient, and it is computed in the forward pass.
    """

    def make(loss: Loss, config: LossConfig, mesh: Mesh) -> MeanLoss:
        rows, scalar = P(BATCH_AXES), P()
        meeting = strategy if batch_shards(mesh) > 1 else ALONE
        run = one_pass if loss.per_example is None else two_passes

        def sharded(with_gradients: bool) -> Callable:
            def device(row_features, column_features, pair_id):
                own = ids(row_ids(count(row_features), BATCH_AXES), pair_id)
                sides = Side(row_features, own), Side(column_features, own)
                return run(meeting, Tiles(loss, config, *sides, BATCH_AXES), *sides, with_gradients)

            return jax.shard_map(
                device,
                mesh=mesh,
                in_specs=(rows, rows, rows),
                out_specs=((scalar, scalar), (rows, rows) if with_gradients else None),
                check_vma=False,
            )

        @jax.custom_vjp
        def mean_loss(row_features, column_features, pair_id):
            return sharded(with_gradients=False)(row_features, column_features, pair_id)[0]

        def backward(gradients, cotangent):
            scaled = jax.tree.map(lambda g: g * cotangent[0], gradients)
            return *scaled, None

        mean_loss.defvjp(sharded(with_gradients=True), backward)
        return mean_loss

    return make


def two_passes(strategy: Strategy, tiles: Tiles, rows: Side, columns: Side, with_gradients: bool) -> tuple:
    """The first pass computes the results of all rows and columns, the second makes gradients from them.

    With e.g. s = logits, r_i = logsumexp_j s_ij and dr_i the loss's derivative by it, ds_ij = dr_i exp(s_ij - r_i):
    two vectors for each term stand for the whole matrix.
    """
    row_states, column_results, kept = strategy.collect(tiles, rows, columns)
    row_results = tiles.of_rows.finish(row_states)
    batch = tiles.count * tiles.devices

    def share(*args):
        parts = {name: part.sum() / batch for name, part in tiles.loss.per_example(*args).items()}
        return sum(parts.values()), parts

    args = (row_results, column_results, rows.features, columns.features)
    if not with_gradients:
        return jax.lax.psum(share(*args), tiles.axis_name), None
    value, pull, parts = jax.vjp(share, *args, has_aux=True)
    row_cotangents, column_cotangents, row_gradients, column_gradients = pull(jnp.ones(()))
    row_sums, column_gradients = strategy.differentiate(
        tiles,
        rows._replace(results=row_results, cotangents=row_cotangents),
        columns._replace(results=column_results, cotangents=column_cotangents),
        RowSums({}, row_gradients),
        column_gradients,
        kept,
    )
    return jax.lax.psum((value, parts), tiles.axis_name), (row_sums.gradients, column_gradients)


def one_pass(strategy: Strategy, tiles: Tiles, rows: Side, columns: Side, with_gradients: bool) -> tuple:
    """For a loss that is a plain sum over pairs: its derivative by each term is 1 / B, known before any tile."""
    if tiles.of_columns.kinds or any(kind is not Sum for kind in tiles.of_rows.kinds.values()):
        raise TypeError("A Loss without per_example has row terms only, and all of them are Sum.")
    batch = tiles.count * tiles.devices
    states = tiles.of_rows.empty(tiles.count)
    share = {name: jnp.full((tiles.count,), 1.0 / batch) for name in states}
    gradients = jax.tree.map(jnp.zeros_like, (rows.features, columns.features)) if with_gradients else (None, None)
    row_sums, column_gradients = strategy.differentiate(
        tiles,
        rows._replace(results=share, cotangents=share),
        columns._replace(results={}, cotangents={}),
        RowSums(states, gradients[0]),
        gradients[1],
        None,
    )
    total = sum(result.sum() for result in tiles.of_rows.finish(row_sums.states).values()) / batch
    value = jax.lax.psum(total, tiles.axis_name), {}
    return value, ((row_sums.gradients, column_gradients) if with_gradients else None)


def _collect_alone(tiles: Tiles, rows: Side, columns: Side) -> tuple:
    empty = tiles.of_rows.empty(tiles.count), tiles.of_columns.empty(tiles.count)
    row_states, column_states = tiles.collect(rows, columns, *empty)
    return row_states, tiles.of_columns.finish(column_states), None


def _differentiate_alone(tiles: Tiles, rows: Side, columns: Side, row_sums: RowSums, column_gradients: Tree, kept):
    del kept
    return tiles.differentiate(rows, columns, row_sums, column_gradients)


# Where one device has all rows and all columns, under any name.
ALONE = Strategy(_collect_alone, _differentiate_alone)
