"""What losses need between devices. axis_name may be a tuple of mesh axes, taken as one, first axis outermost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

AxisName = str | tuple[str, ...]
Tree = Any


def all_gather(tree: Tree, axis_name: AxisName) -> Tree:
    """[b, ...] of every device -> [B, ...] on every device, in device order."""
    return jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), tree)


def own_rows(array: jax.Array, rows: int, axis_name: AxisName) -> jax.Array:
    """This device's part [rows, ...] of a gathered array."""
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(axis_name) * rows, rows)


def row_ids(rows: int, axis_name: AxisName) -> jax.Array:
    """[rows] int32: the global batch positions of this device's rows."""
    return jax.lax.axis_index(axis_name).astype(jnp.int32) * rows + jnp.arange(rows, dtype=jnp.int32)


def ring(body: Callable[[Tree, Tree], tuple[Tree, Tree]], stays: Tree, travels: Tree, axis_name: AxisName):
    """One full rotation: `travels` visits every device once and comes home; returns (stays, travels).

    body(stays, travels) -> both, updated by their meeting.
    """
    size = jax.lax.axis_size(axis_name)
    to_next = [(i, (i + 1) % size) for i in range(size)]

    def hop(_, carry):
        stays, travels = body(*carry)
        if size > 1:
            travels = jax.tree.map(lambda a: jax.lax.ppermute(a, axis_name, to_next), travels)
        return stays, travels

    return jax.lax.fori_loop(0, size, hop, (stays, travels))
