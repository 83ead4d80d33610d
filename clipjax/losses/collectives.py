"""Collectives on trees of arrays. axis_name may be a tuple of mesh axes, taken as one, first axis outermost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

AxisName = str | tuple[str, ...]
Tree = Any


def all_gather(tree: Tree, axis_name: AxisName, dtype: str = "float32") -> Tree:
    """[b, ...] of every device -> [B, ...] on every device, in device order. dtype: see packed."""
    return unpacked(gathered(packed(tree, dtype), axis_name))


def gathered(tree: Tree, axis_name: AxisName) -> Tree:
    """[b, ...] of every device -> [B, ...] on every device, as they are."""
    return jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), tree)


def scattered(tree: Tree, axis_name: AxisName) -> Tree:
    """[B, ...] on every device -> this device's part [b, ...] of their sum."""
    return jax.tree.map(lambda a: jax.lax.psum_scatter(a, axis_name, tiled=True), tree)


def packed(tree: Tree, dtype: str) -> Tree:
    """The tree as it moves between devices. With dtype "bfloat16", embeddings ([b, D] arrays) become uint16 bits.

    Integers, because compilers are free to widen a bfloat16 collective. Lossless for values that bfloat16 can hold.
    """
    if dtype == "float32":
        return tree
    return jax.tree.map(lambda a: _bits(a) if a.ndim == 2 else a, tree)


def unpacked(tree: Tree) -> Tree:
    """The reverse of packed; embeddings are float32 again."""
    return jax.tree.map(lambda a: _floats(a) if a.dtype == jnp.uint16 else a, tree)


def own_rows(tree: Tree, rows: int, axis_name: AxisName) -> Tree:
    """This device's part [rows, ...] of gathered arrays."""
    start = jax.lax.axis_index(axis_name) * rows
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, rows), tree)


def row_ids(rows: int, axis_name: AxisName) -> jax.Array:
    """[rows] int32: the global batch positions of this device's rows."""
    return jax.lax.axis_index(axis_name).astype(jnp.int32) * rows + jnp.arange(rows, dtype=jnp.int32)


def _bits(a: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(a.astype(jnp.bfloat16), jnp.uint16)


def _floats(a: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(a, jnp.bfloat16).astype(jnp.float32)
