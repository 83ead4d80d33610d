"""What losses need between devices. axis_name may be a tuple of mesh axes, taken as one, first axis outermost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

AxisName = str | tuple[str, ...]
Tree = Any


def all_gather(tree: Tree, axis_name: AxisName, dtype: str = "float32") -> Tree:
    """[b, ...] of every device -> [B, ...] on every device, in device order; dtype: see packed."""
    return unpacked(jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), packed(tree, dtype)))


def packed(tree: Tree, dtype: str) -> Tree:
    """What moves between devices: embeddings, arrays [b, D], of dtype "bfloat16" as their two bytes; the rest as it is.

    Integers, since compilers are free to widen a bfloat16 collective. Lossless for values that bfloat16 can hold.
    """
    if dtype == "float32":
        return tree
    bits = lambda a: jax.lax.bitcast_convert_type(a.astype(jnp.bfloat16), jnp.uint16)  # noqa: E731
    return jax.tree.map(lambda a: bits(a) if a.ndim == 2 else a, tree)


def unpacked(tree: Tree) -> Tree:
    """The reverse, in float32."""
    floats = lambda a: jax.lax.bitcast_convert_type(a, jnp.bfloat16).astype(jnp.float32)  # noqa: E731
    return jax.tree.map(lambda a: floats(a) if a.dtype == jnp.uint16 else a, tree)


def own_rows(tree: Tree, rows: int, axis_name: AxisName) -> Tree:
    """This device's part [rows, ...] of gathered arrays."""
    start = jax.lax.axis_index(axis_name) * rows
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, rows), tree)


def row_ids(rows: int, axis_name: AxisName) -> jax.Array:
    """[rows] int32: the global batch positions of this device's rows."""
    return jax.lax.axis_index(axis_name).astype(jnp.int32) * rows + jnp.arange(rows, dtype=jnp.int32)


def ring(
    meet: Callable, merge: Callable, stays: Tree, visitor: Tree, sums: Tree, *, empty: Tree, axis_name: AxisName
) -> tuple[Tree, Tree]:
    """Every device's `visitor` meets every device's `stays` once; returns (stays, this device's sums, home again).

    meet(stays, visitor, sums) -> (stays, sums): what this meeting changes.
    sums: the visitor's before any meeting; empty: sums of nothing; merge(sums, sums) -> sums, in any order.

    Copies of the visitor leave in both directions, so that the last one is half a ring away after D // 2 hops and
    both directions of a link work. The next visitor and the last meeting's sums are on their way while a meeting is
    computed: neither needs its result. The sums then come home in one step.
    """
    size = jax.lax.axis_size(axis_name)

    def shift(tree: Tree, by: int) -> Tree:
        where = [(i, (i + by) % size) for i in range(size)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, axis_name, where), tree)

    stays, home = meet(stays, visitor, sums)
    if size == 1:
        return stays, home
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


def chunks(
    meet: Callable, home: Callable, stays: Tree, visitor: Tree, *, count: int, empty: Tree, axis_name: AxisName
) -> tuple[Tree, Tree]:
    """Every device's `visitor` meets every device's `stays` once, `count` equal parts of it after one another.

    meet(stays, part of all devices' visitors in device order) -> (stays, the part's sums); empty: such sums of nothing.
    home(sums) -> what is kept of them here. Returns (stays, that of all parts, stacked).

    While a part is met the next one is gathered, and the sums of the last one go home: neither needs its result.
    """
    parts = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), visitor)
    gather = lambda part: jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), part)  # noqa: E731

    def step(carry, part):
        stays, arrived, sums = carry
        following, kept = gather(part), home(sums)
        stays, sums = meet(stays, arrived)
        return (stays, following, sums), kept

    carry = (stays, gather(jax.tree.map(lambda a: a[0], parts)), empty)
    (stays, arrived, sums), kept = jax.lax.scan(step, carry, jax.tree.map(lambda a: a[1:], parts))
    before_last = home(sums)
    stays, sums = meet(stays, arrived)
    # The first thing that went home was `empty`.
    return stays, jax.tree.map(
        lambda a, b, c: jnp.concatenate([a, b[None], c[None]])[1:], kept, before_last, home(sums)
    )


def scattered(tree: Tree, axis_name: AxisName) -> Tree:
    """[B, ...] on every device -> this device's part [b, ...] of their sum."""
    return jax.tree.map(lambda a: jax.lax.psum_scatter(a, axis_name, tiled=True), tree)


def joined(parts: Tree) -> Tree:
    """[count, rows of a part, ...] -> [rows, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), parts)
