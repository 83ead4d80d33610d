"""The split and the shard of a row, by hashes of its key alone."""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Iterator

from data_pipelines.files import split_by_share
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.types import Note, Row, place

_BINS = 1 << 16


def order(row: Row) -> tuple[float, str]:
    """The order of records in their split: like a random one, but always the same."""
    return place(row.key, "order"), row.key


def count(row: Row, options: Options) -> Iterator[str]:
    yield f"{split_by_share(options.splits)(row.key)} {_bin(row)}"


def layout(counts: dict[str, int], options: Options) -> dict[str, list[int]]:
    """Split -> first bin of each shard: consecutive bins, about records_per_shard rows, no shard empty."""
    by_split: dict[str, dict[int, int]] = collections.defaultdict(dict)
    for name, rows in counts.items():
        split, _, number = name.rpartition(" ")
        by_split[split][int(number)] = rows
    result = {}
    for split, bins in sorted(by_split.items()):
        total = sum(bins.values())
        shards, before, last, starts = -(-total // options.records_per_shard), 0, -1, []
        for number in sorted(bins):
            # A bin with many rows can skip a shard's number; shards are counted by their starts.
            if (shard := before * shards // total) != last:
                starts.append(number)
                last = shard
            before += bins[number]
        result[split] = starts
    return result


def assign(row: Row, layout: dict[str, list[int]], options: Options, note: Note) -> Row:
    split = split_by_share(options.splits)(row.key)
    return dataclasses.replace(row, split=split, shard=bisect.bisect_right(layout[split], _bin(row)) - 1)


def _bin(row: Row) -> int:
    return int(place(row.key, "order") * _BINS)
