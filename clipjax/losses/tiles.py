"""Visit every pair of (row tile, column tile) and accumulate on both sides, in memory of one tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.config import require

Tree = Any
LARGEST_DEFAULT_TILE = 1024


def over_tiles(body: Callable, rows: Tree, columns: Tree, row_sums: Tree, column_sums: Tree, tile: int):
    """Accumulates over all tiles of the rows x columns matrix; returns (row_sums, column_sums).

    rows, row_sums: trees of [r, ...]; columns, column_sums: trees of [c, ...]; tile divides r and c.
    body(row_tile, column_tile, row_sums_tile, column_sums_tile) -> the two sums' tiles, updated.
    """
    split = lambda tree: jax.tree.map(lambda a: a.reshape(-1, tile, *a.shape[1:]), tree)  # noqa: E731
    join = lambda tree: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)  # noqa: E731
    columns, column_sums = split(columns), split(column_sums)
    count = jax.tree.leaves(columns)[0].shape[0]

    def row_step(column_sums, row):
        row_tile, row_sums_tile = row

        def column_step(j, carry):
            row_sums_tile, column_sums = carry
            at_j = lambda tree: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, j, keepdims=False), tree)  # noqa: E731
            row_sums_tile, updated = body(row_tile, at_j(columns), row_sums_tile, at_j(column_sums))
            # In place: the loop carries one copy of the column sums, not one per row tile.
            column_sums = jax.tree.map(
                lambda a, u: jax.lax.dynamic_update_index_in_dim(a, u, j, 0), column_sums, updated
            )
            return row_sums_tile, column_sums

        row_sums_tile, column_sums = jax.lax.fori_loop(0, count, column_step, (row_sums_tile, column_sums))
        return column_sums, row_sums_tile

    column_sums, row_sums = jax.lax.scan(row_step, column_sums, (split(rows), split(row_sums)))
    return join(row_sums), join(column_sums)


def logits_tile(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [r, D] . y [c, D] -> [r, c] float32; full float32 products also where the default is fewer bits."""
    return jax.lax.dot_general(
        x, y, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def product(a: jax.Array, b: jax.Array, *, contract: tuple[int, int]) -> jax.Array:
    """Matrix product of a and b over the given axes, float32."""
    return jax.lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def choose_tile(rows: int, tile: int) -> int:
    """tile, or for 0 a divisor of `rows` near LARGEST_DEFAULT_TILE. Raises ConfigError when tile does not divide."""
    if tile:
        require(
            rows % tile == 0,
            f"config.loss.tile={tile} does not divide the {rows} rows of one device. Use a divisor, such as "
            f"{max(d for d in range(1, min(rows, tile) + 1) if rows % d == 0)}, or 0 to have it chosen.",
        )
        return tile
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    small = max(d for d in divisors if d <= LARGEST_DEFAULT_TILE)
    # A batch with no divisor of useful size (a prime, say) takes the next larger one.
    return small if small >= min(rows, 128) else min(d for d in divisors if d > LARGEST_DEFAULT_TILE)
