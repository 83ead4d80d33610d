"""Visit every pair of (row tile, column tile) and accumulate on both sides, in memory of one tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.config import require

Tree = Any
LARGEST_DEFAULT_TILE = 512
LARGEST_TILE_ALONE = 1024


def over_tiles(body: Callable, rows: Tree, columns: Tree, row_sums: Tree, column_sums: Tree, shape: tuple[int, int]):
    """Accumulates over all tiles of the rows x columns matrix; returns (row_sums, column_sums).

    rows, row_sums: trees of [r, ...]; columns, column_sums: trees of [c, ...].
    shape: of a tile; its sides divide r and c.
    body(row_tile, column_tile, row_sums_tile, column_sums_tile) -> the two sums' tiles, updated.
    """
    split = lambda tree, side: jax.tree.map(lambda a: a.reshape(-1, side, *a.shape[1:]), tree)  # noqa: E731
    join = lambda tree: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)  # noqa: E731
    at = lambda tree, i: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), tree)  # noqa: E731
    count = lambda tree: jax.tree.leaves(tree)[0].shape[0]  # noqa: E731

    def put(tree: Tree, i: jax.Array, values: Tree) -> Tree:
        # In place: the loops carry one copy of the sums, and update a tile of it.
        return jax.tree.map(lambda a, v: jax.lax.dynamic_update_index_in_dim(a, v, i, 0), tree, values)

    rows, row_sums = split(rows, shape[0]), split(row_sums, shape[0])
    columns, column_sums = split(columns, shape[1]), split(column_sums, shape[1])

    def row_step(i, carry):
        row_sums, column_sums = carry
        row = at(rows, i)

        def column_step(j, carry):
            row_sums_tile, column_sums = carry
            row_sums_tile, updated = body(row, at(columns, j), row_sums_tile, at(column_sums, j))
            return row_sums_tile, put(column_sums, j, updated)

        row_sums_tile, column_sums = jax.lax.fori_loop(0, count(columns), column_step, (at(row_sums, i), column_sums))
        return put(row_sums, i, row_sums_tile), column_sums

    row_sums, column_sums = jax.lax.fori_loop(0, count(rows), row_step, (row_sums, column_sums))
    return join(row_sums), join(column_sums)


def similarities(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [r, D] . y [c, D] -> [r, c] float32; full float32 products also where the default is fewer bits."""
    return jax.lax.dot_general(
        x, y, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x [r, D] times scale [r], float32."""
    return x.astype(jnp.float32) * scale[:, None]


def tile_shape(rows: int, columns: int, own: int, tile: int) -> tuple[int, int]:
    """Sides of the tiles for `rows` x `columns`, of which a device's `own` rows (choose_tile's side) are one side.

    The other, gathered side is as long as makes the tile no larger than a square one: long products keep a matrix unit
    busy where a device has few rows.
    """
    side = choose_tile(own, tile)
    area = (tile or LARGEST_DEFAULT_TILE) ** 2

    def long(count: int) -> int:
        return side * max(
            d for d in range(1, count // side + 1) if (count // side) % d == 0 and side * d * side <= area
        )

    return (side if rows == own else long(rows)), (side if columns == own else long(columns))


def tile_shape_alone(rows: int, tile: int) -> tuple[int, int]:
    """Sides of the tiles where one device has all rows: larger ones, twice as high as wide. Each tile's gradients are
    added to those of its rows and of its columns, which costs less the fewer tiles there are."""
    side = choose_tile(rows, tile, LARGEST_TILE_ALONE)
    return (side if tile or rows % (2 * side) else 2 * side), side


def chunk_count(rows: int, devices: int, tile: int) -> int:
    """In how many parts `rows` of each device are gathered: the fewest of which each, all devices' rows together, is
    divided by tiles and no longer than two of them, if it can be."""
    side, longest = choose_tile(rows, tile), 2 * (tile or LARGEST_DEFAULT_TILE)
    # One row of each device at a time is the shortest part there can be.
    parts = [d for d in range(1, rows + 1) if rows % d == 0 and d * devices % side == 0]
    return rows // max((d for d in parts if d * devices <= longest), default=parts[0])


def choose_tile(rows: int, tile: int, largest: int = LARGEST_DEFAULT_TILE) -> int:
    """tile, or for 0 a divisor of `rows` near `largest`. Raises ConfigError when tile does not divide."""
    if tile:
        require(
            rows % tile == 0,
            f"config.loss.tile={tile} does not divide the {rows} rows of one device. Use a divisor, such as "
            f"{max(d for d in range(1, min(rows, tile) + 1) if rows % d == 0)}, or 0 to have it chosen.",
        )
        return tile
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    small = max(d for d in divisors if d <= largest)
    # A batch with no divisor of useful size (a prime, say) takes the next larger one.
    return small if small >= min(rows, 128) else min(d for d in divisors if d > largest)
