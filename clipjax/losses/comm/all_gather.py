"""comm="all_gather": embeddings move once and gradients do not move at all.

Every device gathers all columns, and later all rows, and computes the gradients of its own rows and columns by itself.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from clipjax.losses.collectives import all_gather, own_rows
from clipjax.losses.comm.cost import Meeting, Work
from clipjax.losses.comm.passes import Strategy
from clipjax.losses.tiles import RowSums, Side, Tiles, products_in_squares


def collect(tiles: Tiles, rows: Side, columns: Side) -> tuple[dict, dict, Side]:
    all_columns = _of_all_devices(tiles, columns)
    empty = tiles.of_rows.empty(tiles.count), tiles.of_columns.empty(tiles.count * tiles.devices)
    with products_in_squares():
        row_states, column_states = tiles.collect(rows, all_columns, *empty)
    column_states = tiles.of_columns.across(column_states, tiles.axis_name)
    return row_states, own_rows(column_states, tiles.count, tiles.axis_name), all_columns


def differentiate(
    tiles: Tiles, rows: Side, columns: Side, row_sums: RowSums, column_gradients: Any, kept: Side | None
) -> tuple[RowSums, Any]:
    if kept is None:
        # Sums over pairs alone: no tile's derivative depends on another tile's products.
        return _both_ways(tiles, rows, columns, _of_all_devices(tiles, columns), row_sums, column_gradients)
    all_columns = kept._replace(slopes=all_gather(columns.slopes, tiles.axis_name))
    with products_in_squares():
        return _both_ways(tiles, rows, columns, all_columns, row_sums, column_gradients)


def _both_ways(tiles: Tiles, rows: Side, columns: Side, all_columns: Side, row_sums: RowSums, column_gradients: Any):
    row_sums, _ = tiles.differentiate(rows, all_columns, row_sums, None)
    if column_gradients is not None:
        all_rows = _of_all_devices(tiles, rows)
        _, column_gradients = tiles.differentiate(all_rows, columns, RowSums({}, None), column_gradients)
    return row_sums, column_gradients


def _of_all_devices(tiles: Tiles, own: Side) -> Side:
    """Every device's rows or columns, in device order; positions are known and do not move."""
    others = {name: ids for name, ids in own.ids.items() if name != "index"}
    everyone = all_gather(own._replace(ids=others), tiles.axis_name, tiles.config.dtype)
    index = jnp.arange(tiles.count * tiles.devices, dtype=own.ids["index"].dtype)
    return everyone._replace(ids={"index": index} | everyone.ids)


def work(meeting: Meeting) -> Work:
    """The gradients of own rows and of own columns are computed apart: tiles are visited once more than in a ring."""
    m, two = meeting, meeting.passes == 2
    visits = m.tiles(m.batch) * (m.passes + 1)
    received = 2 * m.batch * m.width * m.itemsize + 8 * m.batch * two
    return Work(visits, products=5 if two else 4, received=received, collectives=4 if two else 2, hidden=False)


STRATEGY = Strategy(collect, differentiate)
