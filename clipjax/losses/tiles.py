"""One device's part of the matrix of all pairs, visited tile by tile in the memory of one tile."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig
from clipjax.losses.collectives import AxisName
from clipjax.losses.loss import Loss, Pairs
from clipjax.losses.reductions import Reductions
from clipjax.losses.tile_sizes import tile_shape, tile_shape_alone

Tree = Any
_IN_SQUARES = contextvars.ContextVar("in_squares", default=False)


class Side(NamedTuple):
    """Rows or columns of the matrix, as trees of [count, ...]."""

    features: Tree  # what Loss.features gave
    ids: dict[str, jax.Array]  # positions in the global batch, and pair_id where repeats matter
    slopes: dict | None = None  # of this side's reductions, once their final states are known


class RowSums(NamedTuple):
    """What `Tiles.differentiate` adds up for its rows."""

    states: dict  # of the reductions; {}: not wanted
    gradients: Tree  # by the features; None: not wanted


class Tiles:
    """The tiles of one loss on one device, inside shard_map."""

    def __init__(self, loss: Loss, config: LossConfig, rows: Side, columns: Side, axis_name: AxisName, largest: int):
        """rows, columns: this device's own; largest: the longest side of a default tile."""
        self.loss, self.config, self.axis_name, self.largest = loss, config, axis_name, largest
        self.count, self.devices = count(rows), jax.lax.axis_size(axis_name)
        row_terms, column_terms = jax.eval_shape(self._terms, rows, columns)
        self.of_rows, self.of_columns = Reductions(row_terms), Reductions(column_terms)

    def collect(self, rows: Side, columns: Side, row_states: dict, column_states: dict) -> tuple[dict, dict]:
        """Adds all tiles of rows x columns to the states of both sides."""

        def visit(row, column, row_states, column_states):
            row_terms, column_terms = self._terms(row, column)
            return _collected(row_terms, row_states, axis=1), _collected(column_terms, column_states, axis=0)

        return over_tiles(visit, rows, columns, row_states, column_states, self._shape(rows, columns))

    def differentiate(
        self, rows: Side, columns: Side, row_sums: RowSums, column_gradients: Tree
    ) -> tuple[RowSums, Tree]:
        """Adds all tiles of rows x columns to the gradients of both sides, and to states that row_sums wants.

        The slopes of rows and columns must be known. column_gradients=None: not wanted.
        """

        def visit(row, column, row_sums, column_gradients):
            terms, (by_row, by_column) = self._gradients(row, column)
            states = _collected(terms[0], row_sums.states, axis=1)
            return RowSums(states, _add(row_sums.gradients, by_row)), _add(column_gradients, by_column)

        return over_tiles(visit, rows, columns, row_sums, column_gradients, self._shape(rows, columns))

    def _shape(self, rows: Side, columns: Side) -> tuple[int, int]:
        if self.devices == 1:
            return tile_shape_alone(self.count, self.config.tile, self.largest)
        return tile_shape(count(rows), count(columns), self.count, self.config.tile, self.largest)

    def _terms(self, row: Side, column: Side) -> tuple[dict, dict]:
        return self.loss.terms(row.features, column.features, pairs(row.ids, column.ids, self.config.repeats))

    def _gradients(self, row: Side, column: Side) -> tuple[tuple[dict, dict], tuple[Tree, Tree]]:
        """(the tile's terms, gradients by the features of its rows and columns)."""
        terms, pull = jax.vjp(
            lambda r, c: self._terms(row._replace(features=r), column._replace(features=c)),
            row.features,
            column.features,
        )
        cotangents = tuple(
            {name: term.pull(side.slopes[name], axis) for name, term in side_terms.items()}
            for side_terms, side, axis in zip(terms, (row, column), (1, 0), strict=True)
        )
        return terms, pull(cotangents)


def over_tiles(body: Callable, rows: Tree, columns: Tree, row_sums: Tree, column_sums: Tree, shape: tuple[int, int]):
    """Accumulates over all tiles of the rows x columns matrix; returns (row_sums, column_sums).

    rows, row_sums: trees of [r, ...]; columns, column_sums: trees of [c, ...].
    shape: height and width of a tile; they divide r and c.
    body(row_tile, column_tile, row_sums_tile, column_sums_tile) -> the tiles of both sums, updated.
    """
    rows, row_sums = _split(rows, shape[0]), _split(row_sums, shape[0])
    columns, column_sums = _split(columns, shape[1]), _split(column_sums, shape[1])

    def row_step(i, carry):
        row_sums, column_sums = carry
        row = _at(rows, i)

        def column_step(j, carry):
            row_sums_tile, column_sums = carry
            row_sums_tile, updated = body(row, _at(columns, j), row_sums_tile, _at(column_sums, j))
            return row_sums_tile, _put(column_sums, j, updated)

        row_sums_tile, column_sums = jax.lax.fori_loop(0, count(columns), column_step, (_at(row_sums, i), column_sums))
        return _put(row_sums, i, row_sums_tile), column_sums

    row_sums, column_sums = jax.lax.fori_loop(0, count(rows), row_step, (row_sums, column_sums))
    return _join(row_sums), _join(column_sums)


def pairs(row_ids: dict, column_ids: dict, repeats: str) -> Pairs:
    """The masks of a tile whose rows and columns have these ids; repeats: config.loss.repeats."""
    diagonal = row_ids["index"][:, None] == column_ids["index"][None, :]
    if repeats == "negatives" or "pair_id" not in row_ids:
        return Pairs(diagonal, diagonal, None, False)
    same = (row_ids["pair_id"][:, None] == column_ids["pair_id"][None, :]) & (row_ids["pair_id"][:, None] != -1)
    if repeats == "ignore":
        return Pairs(diagonal, diagonal, same & ~diagonal, False)
    return Pairs(diagonal, diagonal | same, None, True)


def ids(index: jax.Array, pair_id: jax.Array | None) -> dict[str, jax.Array]:
    return {"index": index} | ({} if pair_id is None else {"pair_id": pair_id})


def similarities(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [r, D] . y [c, D] -> [r, c] float32; full float32 products even where the default precision is lower."""
    return _in_squares(x, y) if _IN_SQUARES.get() and len(x) != len(y) else _product(x, y, ((1,), (1,)))


@contextlib.contextmanager
def products_in_squares() -> Iterator[None]:
    """In it, `similarities` of a long tile are those of its squares: the same bits in a tile that lies the other way.

    The order in which a matrix product adds up depends on its shape. At scale 100 two orders differ by 1e-5 or more,
    and a softmax of the one with a log-sum-exp of the other no longer adds up to 1.
    """
    token = _IN_SQUARES.set(True)
    try:
        yield
    finally:
        _IN_SQUARES.reset(token)


@jax.custom_vjp
def _in_squares(x: jax.Array, y: jax.Array) -> jax.Array:
    """The longer of x and y must be a multiple of the other. Only these products, not their gradients', are short."""
    rows, columns, side = len(x), len(y), min(len(x), len(y))
    x, y = (
        jnp.broadcast_to(a.reshape(-1, side, a.shape[1]), (max(rows, columns) // side, side, a.shape[1]))
        for a in (x, y)
    )
    squares = _product(x, y, ((2,), (2,)), ((0,), (0,)))
    return (squares if columns == side else squares.transpose(1, 0, 2)).reshape(rows, columns)


def _in_squares_backward(operands: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = operands
    return _product(g, y, ((1,), (0,))).astype(x.dtype), _product(g, x, ((0,), (0,))).astype(y.dtype)


_in_squares.defvjp(lambda x, y: (_in_squares(x, y), (x, y)), _in_squares_backward)


def _product(x: jax.Array, y: jax.Array, contract: tuple, batch: tuple = ((), ())) -> jax.Array:
    return jax.lax.dot_general(
        x, y, (contract, batch), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x [r, D] times scale [r], float32."""
    return x.astype(jnp.float32) * scale[:, None]


def count(tree: Tree) -> int:
    """Length of the first dimension of a tree's arrays."""
    return jax.tree.leaves(tree)[0].shape[0]


def _collected(terms: dict, states: dict, axis: int) -> dict:
    return {name: terms[name].merge(state, terms[name].state(axis)) for name, state in states.items()}


def _add(sums: Tree, part: Tree) -> Tree:
    return None if sums is None else jax.tree.map(jnp.add, sums, part)


def _split(tree: Tree, side: int) -> Tree:
    return jax.tree.map(lambda a: a.reshape(-1, side, *a.shape[1:]), tree)


def _join(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def _at(tree: Tree, i: jax.Array) -> Tree:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), tree)


def _put(tree: Tree, i: jax.Array, values: Tree) -> Tree:
    # In place: the loops carry one copy of the sums, and update a tile of it.
    return jax.tree.map(lambda a, v: jax.lax.dynamic_update_index_in_dim(a, v, i, 0), tree, values)
