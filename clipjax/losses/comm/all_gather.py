"""comm="all_gather": embeddings move once and gradients do not move at all.

Every device gathers all columns, and later all rows, and computes the gradients of its own rows and columns by itself.
"""

from __future__ import annotations

from typing import Any

from clipjax.losses.collectives import all_gather, own_rows
from clipjax.losses.comm.passes import Strategy
from clipjax.losses.tiles import RowSums, Side, Tiles


def collect(tiles: Tiles, rows: Side, columns: Side) -> tuple[dict, dict, Side]:
    reductions = tiles.of_columns
    all_columns = all_gather(columns, tiles.axis_name, tiles.config.dtype)
    empty = tiles.of_rows.empty(tiles.count), reductions.empty(tiles.count * tiles.devices)
    row_states, column_states = tiles.collect(rows, all_columns, *empty)
    results = reductions.finish(reductions.across(column_states, tiles.axis_name))
    return row_states, own_rows(results, tiles.count, tiles.axis_name), all_columns._replace(results=results)


def differentiate(
    tiles: Tiles, rows: Side, columns: Side, row_sums: RowSums, column_gradients: Any, kept: Side | None
) -> tuple[RowSums, Any]:
    if kept is None:
        all_columns = all_gather(columns, tiles.axis_name, tiles.config.dtype)
    else:
        all_columns = kept._replace(cotangents=all_gather(columns.cotangents, tiles.axis_name))
    row_sums, _ = tiles.differentiate(rows, all_columns, row_sums, None)
    if column_gradients is not None:
        all_rows = all_gather(rows, tiles.axis_name, tiles.config.dtype)
        _, column_gradients = tiles.differentiate(all_rows, columns, RowSums({}, None), column_gradients)
    return row_sums, column_gradients


STRATEGY = Strategy(collect, differentiate)
