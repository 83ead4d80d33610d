"""A loss over all pairs of the global batch, exact on any mesh, from a description of ONE tile of the pairs.

A strategy lets each row meet each column. The first pass collects the loss's reductions of rows and columns, the second
computes the gradient. A loss that is a plain sum over pairs does both in one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clipjax.config import LossConfig
from clipjax.losses.collectives import row_ids
from clipjax.losses.loss import Loss
from clipjax.losses.reductions import Sum, in_pairs
from clipjax.losses.tile_sizes import largest_tile
from clipjax.losses.tiles import RowSums, Side, Tiles, count, ids
from clipjax.mesh import BATCH_AXES, batch_shards

Tree = Any
# (row features, column features, pair_id) -> (mean of the loss over the global batch, its parts), differentiable
MeanLoss = Callable[[Tree, Tree, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]


class Strategy(NamedTuple):
    """How each row of the global batch meets each column. Both functions run on all devices at the same time.

    collect(tiles, rows, columns) -> (final states of these rows, of these columns, kept): the first pass.
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
        rows, scalar, largest = P(BATCH_AXES), P(), largest_tile(mesh)
        meeting = strategy if batch_shards(mesh) > 1 else ALONE
        run = one_pass if loss.per_example is None else two_passes

        def sharded(with_gradients: bool) -> Callable:
            def device(row_features, column_features, pair_id, weights=None):
                own = ids(row_ids(count(row_features), BATCH_AXES), pair_id)
                sides = Side(row_features, own), Side(column_features, own)
                return run(meeting, Tiles(loss, config, *sides, BATCH_AXES, largest), *sides, with_gradients, weights)

            return jax.shard_map(
                device,
                mesh=mesh,
                in_specs=(rows, rows, rows, scalar),
                out_specs=((scalar, scalar), (rows, rows) if with_gradients else None),
                check_vma=False,
            )

        @jax.custom_vjp
        def mean_loss(row_features, column_features, pair_id):
            return sharded(with_gradients=False)(row_features, column_features, pair_id, None)[0]

        def forward(*primals):
            inputs = jax.tree.map(
                lambda primal: primal.value, primals, is_leaf=lambda a: isinstance(a, CustomVJPPrimal)
            )
            result, gradients = sharded(with_gradients=True)(*inputs, None)
            return result, (gradients, inputs if len(result[1]) > 1 else None)

        def backward(kept, cotangent):
            (gradients, inputs), (by_value, by_part) = kept, _without_zeros(cotangent)
            if inputs is None or not by_part:
                return *of_mean(gradients, by_value + sum(by_part.values())), None
            # Parts are differentiated by themselves, as metrics: their gradients are not those of their sum.
            weights = {name: by_value + by_part.get(name, 0.0) for name in cotangent[1]}
            return *of_mean(sharded(with_gradients=True)(*inputs, weights)[1], 1.0), None

        def of_mean(gradients, weight):
            return jax.tree.map(lambda g: g * (weight / count(gradients)), gradients)

        mean_loss.defvjp(forward, backward, symbolic_zeros=True)
        return mean_loss

    return make


def _without_zeros(cotangent: tuple) -> tuple:
    """(the loss's, those of its parts), leaving out the parts that nothing was differentiated by."""
    by_value, by_part = cotangent
    by_value = 0.0 if isinstance(by_value, SymbolicZero) else by_value
    return by_value, {name: c for name, c in by_part.items() if not isinstance(c, SymbolicZero)}


def two_passes(
    strategy: Strategy, tiles: Tiles, rows: Side, columns: Side, with_gradients: bool, weights: dict | None
) -> tuple:
    """The first pass computes the results of all rows and columns, the second makes gradients from them.

    With e.g. s = logits, r_i = logsumexp_j s_ij and dr_i the loss's derivative by it, ds_ij = dr_i exp(s_ij - r_i):
    two vectors for each term stand for the whole matrix. Both passes must see the same s_ij, to the bit.

    weights: of the loss's parts in what is differentiated; None: 1 each. The gradients are those of the sum over the
    batch, not the mean: 1 / B is often rounded, and a softmax and its target then no longer cancel where they agree.
    """
    row_states, column_states, kept = strategy.collect(tiles, rows, columns)
    batch = tiles.count * tiles.devices

    def share(*args):
        parts = {name: in_pairs(part) for name, part in tiles.loss.per_example(*args).items()}
        value = sum(part if weights is None else weights[name] * part for name, part in parts.items())
        return value, jax.tree.map(lambda part: part / batch, (value, parts))

    results = tiles.of_rows.finish(row_states), tiles.of_columns.finish(column_states)
    args = (*results, rows.features, columns.features)
    if not with_gradients:
        return jax.lax.psum(share(*args)[1], tiles.axis_name), None
    _, pull, values = jax.vjp(share, *args, has_aux=True)
    row_cotangents, column_cotangents, row_gradients, column_gradients = pull(jnp.ones(()))
    row_sums, column_gradients = strategy.differentiate(
        tiles,
        rows._replace(slopes=tiles.of_rows.slopes(row_states, row_cotangents)),
        columns._replace(slopes=tiles.of_columns.slopes(column_states, column_cotangents)),
        RowSums({}, row_gradients),
        column_gradients,
        kept,
    )
    return jax.lax.psum(values, tiles.axis_name), (row_sums.gradients, column_gradients)


def one_pass(
    strategy: Strategy, tiles: Tiles, rows: Side, columns: Side, with_gradients: bool, weights: dict | None
) -> tuple:
    """For a loss that is a plain sum over pairs: its derivative by each term is known before any tile."""
    if tiles.of_columns.kinds or any(kind is not Sum for kind in tiles.of_rows.kinds.values()):
        raise TypeError("A Loss without per_example has row terms only, and all of them are Sum.")
    del weights  # It has no parts.
    states = tiles.of_rows.empty(tiles.count)
    share = {name: jnp.ones((tiles.count,)) for name in states}
    gradients = jax.tree.map(jnp.zeros_like, (rows.features, columns.features)) if with_gradients else (None, None)
    row_sums, column_gradients = strategy.differentiate(
        tiles,
        rows._replace(slopes=tiles.of_rows.slopes(states, share)),
        columns._replace(slopes={}),
        RowSums(states, gradients[0]),
        gradients[1],
        None,
    )
    total = sum(in_pairs(result) for result in tiles.of_rows.finish(row_sums.states).values())
    value = jax.lax.psum(total / (tiles.count * tiles.devices), tiles.axis_name), {}
    return value, ((row_sums.gradients, column_gradients) if with_gradients else None)


def _collect_alone(tiles: Tiles, rows: Side, columns: Side) -> tuple:
    empty = tiles.of_rows.empty(tiles.count), tiles.of_columns.empty(tiles.count)
    return *tiles.collect(rows, columns, *empty), None


def _differentiate_alone(tiles: Tiles, rows: Side, columns: Side, row_sums: RowSums, column_gradients: Tree, kept):
    del kept
    return tiles.differentiate(rows, columns, row_sums, column_gradients)


# Where one device has all rows and all columns, under any name.
ALONE = Strategy(_collect_alone, _differentiate_alone)
