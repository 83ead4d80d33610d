"""comm="ring": blocks of columns travel from device to device, in both directions.

No device ever holds more than three blocks besides its own. The sums that a block's columns collect travel with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.losses.collectives import AxisName, packed, unpacked
from clipjax.losses.comm.cost import Meeting, Work
from clipjax.losses.comm.passes import Strategy
from clipjax.losses.tiles import RowSums, Side, Tiles

Tree = Any


def collect(tiles: Tiles, rows: Side, columns: Side) -> tuple[dict, dict, None]:
    empty = tiles.of_columns.empty(tiles.count)

    def meet(row_states, visitor, states):
        return tiles.collect(rows, unpacked(visitor), row_states, states)

    row_states, column_states = around(
        meet,
        tiles.of_columns.merge,
        tiles.of_rows.empty(tiles.count),
        packed(columns, tiles.config.dtype),
        empty,
        empty=empty,
        axis_name=tiles.axis_name,
    )
    return row_states, column_states, None


def differentiate(
    tiles: Tiles, rows: Side, columns: Side, row_sums: RowSums, column_gradients: Tree, kept: None
) -> tuple[RowSums, Tree]:
    del kept

    def meet(row_sums, visitor, gradients):
        return tiles.differentiate(rows, unpacked(visitor), row_sums, gradients)

    def add(a, b):
        return jax.tree.map(jnp.add, a, b)

    return around(
        meet,
        add,
        row_sums,
        packed(columns, tiles.config.dtype),
        column_gradients,
        empty=jax.tree.map(jnp.zeros_like, column_gradients),
        axis_name=tiles.axis_name,
    )


def around(
    meet: Callable, merge: Callable, stays: Tree, visitor: Tree, sums: Tree, *, empty: Tree, axis_name: AxisName
) -> tuple[Tree, Tree]:
    """Every device's `visitor` meets every device's `stays` once; returns (stays, this device's sums, home again).

    meet(stays, visitor, sums) -> (stays, sums), both with this meeting added.
    sums: the visitor's before any meeting; empty: sums of nothing; merge(sums, sums) -> sums, in any order.
    axis_name: of two devices or more.

    Copies of the visitor leave in both directions, so that the last one is half a ring away after D // 2 hops and
    both directions of a link work. The next visitor and the last meeting's sums are on their way while a meeting is
    computed: neither needs its result. The sums then come home in one step.
    """
    size = jax.lax.axis_size(axis_name)

    def shift(tree: Tree, by: int) -> Tree:
        where = [(i, (i + by) % size) for i in range(size)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, axis_name, where), tree)

    stays, home = meet(stays, visitor, sums)
    both = (size - 1) // 2  # meetings in each direction; an even ring has one more, with the opposite device

    def hop(_, carry):
        stays, forward, backward, forward_sums, backward_sums = carry
        following = shift(forward, 1), shift(backward, -1)
        forward_sums, backward_sums = shift(forward_sums, 1), shift(backward_sums, -1)
        stays, part = meet(stays, forward, empty)
        forward_sums = merge(forward_sums, part)
        stays, part = meet(stays, backward, empty)
        backward_sums = merge(backward_sums, part)
        return stays, *following, forward_sums, backward_sums

    carry = (stays, shift(visitor, 1), shift(visitor, -1), empty, empty)
    stays, forward, _, forward_sums, backward_sums = jax.lax.fori_loop(0, both, hop, carry)
    if size % 2 == 0:
        forward_sums = shift(forward_sums, 1)
        stays, part = meet(stays, forward, empty)
        forward_sums = merge(forward_sums, part)
    home = merge(home, shift(forward_sums, -(size // 2)))
    return stays, merge(home, shift(backward_sums, both)) if both else home


def work(meeting: Meeting) -> Work:
    """A meeting with each device, and half as many hops, both ways at once."""
    m = meeting
    visits = m.passes * m.devices * m.tiles(m.rows)
    received = m.batch * m.width * (m.passes * m.itemsize + 4)
    hops = m.passes * m.devices / 2
    return Work(visits, products=m.passes + 2, received=received, collectives=hops, hidden=True, shared=False)


STRATEGY = Strategy(collect, differentiate)
