"""Records that cannot be used: training replaces them, and every one is counted by cause and named."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from absl import logging

from clipjax.data.records import RecordError
from clipjax.files import printable

T = TypeVar("T")
MAX_WARNINGS = 20
MAX_ATTEMPTS = 16  # records tried for one example before the run stops


class DataError(RuntimeError):
    """Too many records are bad, or there are none."""


class BadRecord(NamedTuple):
    cause: str
    file: str
    position: int
    error: str
    key: str = ""  # of the record, where it could be read

    def __str__(self) -> str:
        return printable(f"{self.file} record {self.position}: {self.error} ({self.cause})")


def first_good(
    source: Any, index: int, make: Callable[[int, Any], T], replacement: Callable[[int], int], bad: list[BadRecord]
) -> T:
    """make(index, source[index]). While the record is bad, replacement(index) draws another one to use instead.

    Appends the bad records to `bad`. Raises DataError after MAX_ATTEMPTS of them.
    """
    for _ in range(MAX_ATTEMPTS):
        record: dict[str, Any] = {}
        try:
            record = source[index]
            return make(index, record)
        except RecordError as error:
            bad.append(bad_record(source, index, error, record.get("key", "")))
            index = replacement(index)
    raise DataError(f"{MAX_ATTEMPTS} records drawn in a row are bad; the last: {bad[-1]}. Rebuild the data.")


def bad_record(source: Any, index: int, error: RecordError, key: str = "") -> BadRecord:
    """What is known of record `index` of a source, which raised `error`."""
    # A plain list of examples is a source too, without files.
    file, position = source.where(index) if hasattr(source, "where") else (type(source).__name__, index)
    return BadRecord(error.cause, file, position, str(error), key)


class BadRecordCounts:
    """causes: {cause: count} since the run began, restarts included; files: {file: count} since this start."""

    def __init__(self, causes: Mapping[str, int], done: str):
        """causes: the counts so far. done: what is done with a bad record, for the warnings."""
        self.causes = collections.Counter(causes)
        self.files: collections.Counter[str] = collections.Counter()
        self.done = done

    def add(self, records: Iterable[BadRecord]) -> None:
        """Counts the records and logs a warning for each of the first MAX_WARNINGS."""
        for record in records:
            self.causes[record.cause] += 1
            self.files[record.file] += 1
            seen = self.files.total()
            if seen <= MAX_WARNINGS:
                more = "; further ones are counted only" if seen == MAX_WARNINGS else ""
                logging.warning("Bad record %s: %s%s", self.done, record, more)

    def worst_files(self) -> str:
        """The files with the most bad records, as text for a message."""
        return ", ".join(f"{file} ({count})" for file, count in self.files.most_common(5))
