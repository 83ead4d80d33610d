"""comm="chunked": the columns are gathered part by part, each while the part before it is computed.

Two parts are in memory at a time. The sums that a part's columns collect are added up over the devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.losses.collectives import AxisName, gathered, own_rows, packed, scattered, unpacked
from clipjax.losses.comm.cost import Meeting, Work
from clipjax.losses.comm.passes import Strategy
from clipjax.losses.tile_sizes import chunk_count
from clipjax.losses.tiles import RowSums, Side, Tiles

Tree = Any


def collect(tiles: Tiles, rows: Side, columns: Side) -> tuple[dict, dict, None]:
    parts, part_length = _parts(tiles)
    empty = tiles.of_columns.empty(part_length)

    def meet(row_states, part):
        return tiles.collect(rows, unpacked(part), row_states, empty)

    row_states, states = in_parts(
        meet,
        lambda part_states: part_states,
        tiles.of_rows.empty(tiles.count),
        packed(columns, tiles.config.dtype),
        parts=parts,
        empty=empty,
        axis_name=tiles.axis_name,
    )
    # One collective for the states of all parts.
    states = tiles.of_columns.across(states, tiles.axis_name)
    own = functools.partial(own_rows, rows=tiles.count // parts, axis_name=tiles.axis_name)
    return row_states, joined(jax.vmap(own)(states)), None


def differentiate(
    tiles: Tiles, rows: Side, columns: Side, row_sums: RowSums, column_gradients: Tree, kept: None
) -> tuple[RowSums, Tree]:
    del kept
    parts, part_length = _parts(tiles)
    # None where no gradient is wanted.
    zeros = jax.tree.map(lambda a: jnp.zeros((part_length, *a.shape[1:]), a.dtype), column_gradients)

    def meet(row_sums, part):
        return tiles.differentiate(rows, unpacked(part), row_sums, zeros)

    row_sums, added = in_parts(
        meet,
        functools.partial(scattered, axis_name=tiles.axis_name),
        row_sums,
        packed(columns, tiles.config.dtype),
        parts=parts,
        empty=zeros,
        axis_name=tiles.axis_name,
    )
    return row_sums, jax.tree.map(jnp.add, column_gradients, joined(added))


def in_parts(
    meet: Callable, home: Callable, stays: Tree, visitor: Tree, *, parts: int, empty: Tree, axis_name: AxisName
) -> tuple[Tree, Tree]:
    """Every device's `visitor` meets every device's `stays` once, in `parts` equal parts one after another.

    meet(stays, part of all devices' visitors in device order) -> (stays, the part's sums); empty: sums of nothing.
    home(sums) -> what this device keeps of them. Returns (stays, what was kept of all parts, stacked).

    While a part is met, the next one is gathered and the sums of the last one go home: neither needs its result.
    """
    visitor = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), visitor)

    def step(carry, part):
        stays, arrived, sums = carry
        following, kept = gathered(part, axis_name), home(sums)
        stays, sums = meet(stays, arrived)
        return (stays, following, sums), kept

    carry = (stays, gathered(jax.tree.map(lambda a: a[0], visitor), axis_name), empty)
    (stays, arrived, sums), kept = jax.lax.scan(step, carry, jax.tree.map(lambda a: a[1:], visitor))
    before_last = home(sums)
    stays, sums = meet(stays, arrived)
    # The first sums that went home were `empty`.
    return stays, jax.tree.map(
        lambda a, b, c: jnp.concatenate([a, b[None], c[None]])[1:], kept, before_last, home(sums)
    )


def joined(parts: Tree) -> Tree:
    """[parts, rows of a part, ...] -> [rows, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), parts)


def _parts(tiles: Tiles) -> tuple[int, int]:
    """(number of parts, columns in a part, those of all devices together)."""
    parts = chunk_count(tiles.count, tiles.devices, tiles.config.tile, tiles.largest)
    return parts, tiles.count * tiles.devices // parts


def work(meeting: Meeting) -> Work:
    """Each pass gathers every part; the last also adds up its gradient in float32."""
    m = meeting
    parts = chunk_count(m.rows, m.devices, m.tile, m.largest)
    visits = m.passes * parts * m.tiles(m.batch // parts)
    received = m.batch * m.width * (m.passes * m.itemsize + 4)
    return Work(visits, products=m.passes + 2, received=received, collectives=2 * parts * m.passes, hidden=True)


STRATEGY = Strategy(collect, differentiate)
