"""A loss over all pairs of the global batch, exact on any mesh, from a description of ONE tile of the pairs.

A loss says what a tile's logits are and what it wants to know of their rows and columns; `over_all_pairs` brings every
row and every column together at once, in chunks or by a ring, tile by tile, and makes the gradient the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clipjax.losses.collectives import (
    AxisName,
    all_gather,
    chunks,
    joined,
    own_rows,
    packed,
    ring,
    row_ids,
    scattered,
    unpacked,
)
from clipjax.losses.tiles import chunk_count, over_tiles, tile_shape, tile_shape_alone
from clipjax.mesh import BATCH_AXES

Tree = Any


class Inputs(NamedTuple):
    """What a loss may look at; rows of the global batch, the first dimension sharded over the batch axes."""

    image_embedding: jax.Array  # [B, D] L2-normalised
    text_embedding: jax.Array  # [B, D] L2-normalised
    logit_scale: jax.Array  # ()
    logit_bias: jax.Array  # ()
    pair_id: jax.Array | None = None  # [B] int32; equal: the captions mean the same; < 0: unlike any other
    teacher_image_embedding: jax.Array | None = None  # [B, D of the teacher] L2-normalised
    teacher_text_embedding: jax.Array | None = None
    teacher_logit_scale: jax.Array | None = None  # ()
    caption_nll: jax.Array | None = None  # [B] float32, summed over a caption's tokens
    caption_tokens: jax.Array | None = None  # [B] float32, how many those are


class Pairs(NamedTuple):
    """Which pairs of a tile are what; [r, c] bool."""

    diagonal: jax.Array  # image i with its own text
    positive: jax.Array  # the diagonal, and repeats where config.loss.repeats="positives"
    ignored: jax.Array | None  # repeats where config.loss.repeats="ignore"; None: none
    several: bool  # whether `positive` may hold more than the diagonal


class Loss(NamedTuple):
    """A row of LOSSES. The loss is the mean of per_example over the global batch, plus `extra`."""

    # (Inputs, LossConfig) -> (rows, columns): dicts of [B, ...] float32
    features: Callable
    # (rows, columns, Pairs) of one tile -> (row_terms, column_terms): dicts of reductions of [r, c]
    terms: Callable
    # (row_results, column_results, rows, columns) -> dict of [B] float32, added up and each a metric;
    # None: the sum of the row terms, all of them Sum, which then needs one pass instead of two
    per_example: Callable | None = None
    # (Inputs, LossConfig) -> dict of () float32, added to the loss and each a metric; plain JAX on global arrays
    extra: Callable | None = None
    needs: tuple[str, ...] = ()  # Inputs that must not be None


def over_all_pairs(
    loss: Loss, mesh: Mesh, *, comm: str, tile: int, repeats: str, dtype: str
) -> Callable[[Tree, Tree, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]:
    """(rows, columns, pair_id) -> (mean of the loss over the global batch, its parts), differentiable.

    The custom rule is around shard_map, so no collective is ever differentiated: what each device computes for its
    rows is the gradient, made in the forward pass.
    """
    rows, scalar = P(BATCH_AXES), P()

    def sharded(with_grads: bool) -> Callable:
        def device(*args):
            run = _one_pass if loss.per_example is None else _two_passes
            tiles = _Tiles(loss, repeats, _count(args[0]), tile, dtype, alone=jax.lax.axis_size(BATCH_AXES) == 1)
            return run(tiles, *args, BATCH_AXES, comm, with_grads)

        return jax.shard_map(
            device,
            mesh=mesh,
            in_specs=(rows, rows, rows),
            out_specs=((scalar, scalar), (rows, rows) if with_grads else None),
            check_vma=False,
        )

    @jax.custom_vjp
    def mean_loss(row_features, column_features, pair_id):
        return sharded(with_grads=False)(row_features, column_features, pair_id)[0]

    def backward(grads, cotangent):
        scaled = jax.tree.map(lambda g: g * cotangent[0], grads)
        return *scaled, None

    mean_loss.defvjp(sharded(with_grads=True), backward)
    return mean_loss


def dense(loss: Loss, repeats: str) -> Callable[[Tree, Tree, jax.Array | None], tuple[jax.Array, dict]]:
    """The same function with the whole [B, B] matrix as one tile and plain autodiff: the textbook form."""

    def mean_loss(rows, columns, pair_id):
        size = _count(rows)
        ids = _ids(jnp.arange(size, dtype=jnp.int32), pair_id)
        found = loss.terms(rows, columns, _pairs(ids, ids, repeats))
        results = [
            {name: term.finish(term.state(axis)) for name, term in terms.items()}
            for terms, axis in zip(found, (1, 0), strict=True)
        ]
        if loss.per_example is None:
            return sum(results[0].values()).mean(), {}
        parts = {name: part.mean() for name, part in loss.per_example(*results, rows, columns).items()}
        return sum(parts.values()), parts

    return mean_loss


def _two_passes(
    tiles: _Tiles, rows: Tree, columns: Tree, pair_id, axis_name: AxisName, comm: str, with_grads: bool
) -> tuple:
    """Per device: the first pass finishes every row's and column's numbers, the second makes gradients from them.

    With e.g. s = logits, r_i = logsumexp_j s_ij and dr_i the loss's derivative by it, ds_ij = dr_i exp(s_ij - r_i):
    two vectors a term stand for the whole matrix, so each device finishes the gradients of its own rows by itself.
    """
    size, devices = _count(rows), jax.lax.axis_size(axis_name)
    ids = _ids(row_ids(size, axis_name), pair_id)
    rows_, columns_ = (rows, ids), (columns, ids)
    row_empty, column_empty = tiles.empty(rows_, columns_, size)
    gathers, chunked = (comm == name and devices > 1 for name in ("all_gather", "chunked"))
    count = tiles.chunk_count(size, devices)

    if gathers:
        all_columns = all_gather(columns_, axis_name, tiles.dtype)
        empty = tiles.empty(rows_, columns_, size * devices)[1]
        row_states, all_states = tiles.collect(rows_, all_columns, row_empty, empty)
        all_results = tiles.finish(1, {n: tiles.kinds[1][n].across(s, axis_name) for n, s in all_states.items()})
        column_results = own_rows(all_results, size, axis_name)
    elif chunked:
        meet = lambda states, part: tiles.collect(rows_, unpacked(part), states, part_empty)  # noqa: E731
        visitor, part_empty = packed(columns_, tiles.dtype), tiles.empty(rows_, columns_, size * devices // count)[1]
        row_states, states = chunks(
            meet, lambda states: states, row_empty, visitor, count=count, empty=part_empty, axis_name=axis_name
        )
        states = {n: tiles.kinds[1][n].across(s, axis_name) for n, s in states.items()}
        own = jax.vmap(functools.partial(own_rows, rows=size // count, axis_name=axis_name))(states)
        column_results = tiles.finish(1, joined(own))
    else:
        meet = lambda states, visitor, sums: tiles.collect(rows_, unpacked(visitor), states, sums)  # noqa: E731
        visitor = packed(columns_, tiles.dtype)
        row_states, column_states = ring(
            meet, tiles.merge, row_empty, visitor, column_empty, empty=column_empty, axis_name=axis_name
        )
        column_results = tiles.finish(1, column_states)
    row_results = tiles.finish(0, row_states)

    def share(*args):
        parts = {name: part.sum() / (size * devices) for name, part in tiles.loss.per_example(*args).items()}
        return sum(parts.values()), parts

    of_all = lambda tree: jax.lax.psum(tree, axis_name)  # noqa: E731
    args = (row_results, column_results, rows, columns)
    if not with_grads:
        return of_all(share(*args)), None
    value, pull, parts = jax.vjp(share, *args, has_aux=True)
    row_cotangents, column_cotangents, drows, dcolumns = pull(jnp.ones(()))
    rows_, columns_ = (*rows_, row_results, row_cotangents), (*columns_, column_results, column_cotangents)
    if gathers:
        all_columns = (*all_columns, all_results, all_gather(column_cotangents, axis_name))
        drows, _ = tiles.differentiate(rows_, all_columns, drows, None)
        _, dcolumns = tiles.differentiate(all_gather(rows_, axis_name, tiles.dtype), columns_, None, dcolumns)
    elif chunked:
        zeros = _zeros(columns, size * devices // count)
        meet = lambda drows, part: tiles.differentiate(rows_, unpacked(part), drows, zeros)  # noqa: E731
        home = lambda sums: scattered(sums, axis_name)  # noqa: E731
        visitor = packed(columns_, tiles.dtype)
        drows, found = chunks(meet, home, drows, visitor, count=count, empty=zeros, axis_name=axis_name)
        dcolumns = _add(dcolumns, joined(found))
    else:
        zeros = jax.tree.map(jnp.zeros_like, dcolumns)
        meet = lambda drows, visitor, dvisitor: tiles.differentiate(rows_, unpacked(visitor), drows, dvisitor)  # noqa: E731
        visitor = packed(columns_, tiles.dtype)
        drows, dcolumns = ring(meet, _add, drows, visitor, dcolumns, empty=zeros, axis_name=axis_name)
    return of_all((value, parts)), (drows, dcolumns)


def _one_pass(
    tiles: _Tiles, rows: Tree, columns: Tree, pair_id, axis_name: AxisName, comm: str, with_grads: bool
) -> tuple:
    """Per device, for a loss that is a plain sum over pairs: its derivative by a term is 1 / B before any is known."""
    size, devices = _count(rows), jax.lax.axis_size(axis_name)
    ids = _ids(row_ids(size, axis_name), pair_id)
    rows_, columns_ = (rows, ids), (columns, ids)
    states, _ = tiles.empty(rows_, columns_, size)
    share = {name: jnp.full((size,), 1.0 / (size * devices)) for name in states}
    rows_, columns_ = (*rows_, share, share), (*columns_, {}, {})
    drows, dcolumns = jax.tree.map(jnp.zeros_like, (rows, columns)) if with_grads else (None, None)

    if comm == "all_gather" and devices > 1:
        all_columns = all_gather(columns_, axis_name, tiles.dtype)
        (states, drows), _ = tiles.collect_and_differentiate(rows_, all_columns, (states, drows), None)
        if with_grads:
            _, dcolumns = tiles.differentiate(all_gather(rows_, axis_name, tiles.dtype), columns_, None, dcolumns)
    elif comm == "chunked" and devices > 1:
        count = tiles.chunk_count(size, devices)
        zeros = _zeros(columns, size * devices // count) if with_grads else None
        meet = lambda sums, part: tiles.collect_and_differentiate(rows_, unpacked(part), sums, zeros)  # noqa: E731
        home = lambda sums: scattered(sums, axis_name)  # noqa: E731
        visitor = packed(columns_, tiles.dtype)
        (states, drows), found = chunks(
            meet, home, (states, drows), visitor, count=count, empty=zeros, axis_name=axis_name
        )
        dcolumns = joined(found)
    else:
        meet = lambda *args: tiles.collect_and_differentiate(rows_, unpacked(args[1]), args[0], args[2])  # noqa: E731
        visitor = packed(columns_, tiles.dtype)
        (states, drows), dcolumns = ring(
            meet, _add, (states, drows), visitor, dcolumns, empty=dcolumns, axis_name=axis_name
        )
    total = sum(values.sum() for (values,) in states.values()) / (size * devices)
    return (jax.lax.psum(total, axis_name), {}), ((drows, dcolumns) if with_grads else None)


class _Tiles:
    """What is done with one tile, and over all tiles of (rows, columns).

    rows and columns are (features, ids), or (features, ids, results, cotangents) once those are known.
    """

    def __init__(self, loss: Loss, repeats: str, own: int, tile: int, dtype: str, alone: bool):
        self.loss, self.repeats, self.dtype = loss, repeats, dtype
        if alone:
            self.shape = lambda rows, columns: tile_shape_alone(own, tile)
        else:
            self.shape = lambda rows, columns: tile_shape(_count(rows), _count(columns), own, tile)
        self.chunk_count = lambda rows, devices: chunk_count(rows, devices, tile)
        self.kinds: tuple[dict, dict] = ({}, {})

    def empty(self, rows: Tree, columns: Tree, column_count: int) -> tuple[dict, dict]:
        """States before any tile: of the rows given, and of column_count columns."""
        found = jax.eval_shape(self._terms, rows, columns)
        self.kinds = tuple({name: type(term) for name, term in terms.items()} for terms in found)
        counts = _count(rows), column_count
        return tuple(
            {name: kind.empty(count) for name, kind in kinds.items()}
            for kinds, count in zip(self.kinds, counts, strict=True)
        )

    def finish(self, side: int, states: dict) -> dict:
        return {name: self.kinds[side][name].finish(state) for name, state in states.items()}

    def merge(self, a: dict, b: dict) -> dict:
        """Two states of the columns."""
        return {name: kind.merge(a[name], b[name]) for name, kind in self.kinds[1].items()}

    def collect(self, rows: Tree, columns: Tree, row_states: dict, column_states: dict) -> tuple[dict, dict]:
        def visit(row, column, *states):
            return self._collected(self._terms(row, column), *states)

        return over_tiles(visit, rows, columns, row_states, column_states, self.shape(rows, columns))

    def differentiate(self, rows: Tree, columns: Tree, drows: Tree, dcolumns: Tree) -> tuple[Tree, Tree]:
        """Adds to the gradients; None: not wanted."""

        def visit(row, column, drow, dcolumn):
            _, grads = self._gradients(row, column)
            return tuple(_add_wanted(d, g) for d, g in zip((drow, dcolumn), grads, strict=True))

        return over_tiles(visit, rows, columns, drows, dcolumns, self.shape(rows, columns))

    def collect_and_differentiate(self, rows: Tree, columns: Tree, row_sums: Tree, dcolumns: Tree):
        def visit(row, column, row_sums, dcolumn):
            states, drow = row_sums
            terms, grads = self._gradients(row, column)
            states, _ = self._collected(terms, states, {})
            return (states, _add_wanted(drow, grads[0])), _add_wanted(dcolumn, grads[1])

        return over_tiles(visit, rows, columns, row_sums, dcolumns, self.shape(rows, columns))

    def _terms(self, row: Tree, column: Tree) -> tuple[dict, dict]:
        return self.loss.terms(row[0], column[0], _pairs(row[1], column[1], self.repeats))

    def _collected(self, terms: tuple[dict, dict], *states: dict) -> tuple[dict, ...]:
        return tuple(
            {name: term.merge(states_[name], term.state(axis)) for name, term in terms_.items()}
            for terms_, states_, axis in zip(terms, states, (1, 0), strict=True)
        )

    def _gradients(self, row: Tree, column: Tree) -> tuple[tuple, tuple]:
        """(the tile's terms, gradients by the features of its rows and of its columns)."""
        (row_features, row_ids, *row_known), (column_features, column_ids, *column_known) = row, column
        terms, pull = jax.vjp(lambda r, c: self._terms((r, row_ids), (c, column_ids)), row_features, column_features)
        cotangents = tuple(
            {name: term.pull(results[name], cotangents[name], axis) for name, term in terms_.items()}
            for terms_, (results, cotangents), axis in zip(terms, (row_known, column_known), (1, 0), strict=True)
        )
        return terms, pull(cotangents)


def _ids(index: jax.Array, pair_id: jax.Array | None) -> dict[str, jax.Array]:
    return {"index": index} | ({} if pair_id is None else {"pair_id": pair_id})


def _pairs(row: dict, column: dict, repeats: str) -> Pairs:
    diagonal = row["index"][:, None] == column["index"][None, :]
    if repeats == "negatives" or "pair_id" not in row:
        return Pairs(diagonal, diagonal, None, False)
    same = (row["pair_id"][:, None] == column["pair_id"][None, :]) & (row["pair_id"][:, None] >= 0)
    if repeats == "ignore":
        return Pairs(diagonal, diagonal, same & ~diagonal, False)
    return Pairs(diagonal, diagonal | same, None, True)


def _count(tree: Tree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _zeros(features: Tree, count: int) -> Tree:
    return jax.tree.map(lambda a: jnp.zeros((count, *a.shape[1:]), a.dtype), features)


def _add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)


def _add_wanted(a: Tree, b: Tree) -> Tree:
    return None if a is None else _add(a, b)
