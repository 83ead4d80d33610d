"""A look at some of a source's records, to tell what is wrong with a source before a run reads all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from clipjax.data.labels import CAUSE
from clipjax.data.mixture import fetch_ahead
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import Source

PROBED = 2048  # records that are looked at before a run
CHUNK = 1024  # records handed to the threads at a time
THREADS = 8


class Labels(NamedTuple):
    """The labels of the records that could be read."""

    labels: np.ndarray  # [n] int64, -1: none
    whole: bool  # whether these are all of the source's records


def read_labels(source: Source, most: int = PROBED) -> Labels:
    """The labels of `most` records, drawn at random and always the same ones, or of all if there are no more.

    Other bad records are left out, but a label that cannot be used, such as one beyond the class names, raises
    ManifestError: whoever asks for labels would lose its records, and the names are likely those of another set.
    """
    indices = some_of(source, most)
    found = list(read_in_threads(source, lambda index: source[index]["label"], indices, THREADS))
    errors = [(index, one) for index, one in zip(indices, found, strict=True) if isinstance(one, RecordError)]
    if unusable := [(int(index), error) for index, error in errors if error.cause == CAUSE]:
        index, error = unusable[0]
        raise ManifestError(
            f"{len(unusable)} of the {len(indices)} records that were looked at have a label that cannot be used; the "
            "first is {} record {}: {}".format(*source.where(index), error)
        )
    labels = [label for label in found if not isinstance(label, RecordError)]
    return Labels(np.array(labels, np.int64), len(indices) == len(source))


def some_of(source: Source, most: int) -> np.ndarray:
    """[min(most, len(source))] indices in increasing order: all, or a random choice that is the same every time."""
    if most >= len(source):
        return np.arange(len(source))
    # Not every nth record: labels may repeat with that period.
    return np.sort(np.random.default_rng(0).choice(len(source), most, replace=False))


def read_in_threads(source: Source, read: Callable[[int], Any], indices: np.ndarray, num_threads: int) -> Iterator[Any]:
    """read(index) for each index, in order; a RecordError that it raises is yielded in its place.

    source: what `read` reads from.
    """

    def one(index: int) -> Any:
        try:
            return read(index)
        except RecordError as error:
            return error

    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(indices), CHUNK):
            chunk = [int(index) for index in indices[start : start + CHUNK]]
            fetch_ahead(source, chunk)
            yield from pool.map(one, chunk)
