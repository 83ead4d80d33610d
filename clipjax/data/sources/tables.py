"""Rows of CSV, TSV and JSON Lines tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.data.records import ManifestError

TABLES = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 10_000_000  # characters of a CSV field


class TableRow(NamedTuple):
    line: int  # of the file, from 1; the last line of a row that has several
    values: Mapping[str, Any]  # by column
    fault: str = ""  # why the row cannot be used
    detail: str = ""  # what the parser said


def table_rows(table: Path) -> Iterator[TableRow]:
    """Rows of a .jsonl table, or of any other as csv_rows reads it."""
    return json_rows(table) if table.suffix.lower() == ".jsonl" else csv_rows(table)


def csv_rows(table: Path) -> Iterator[TableRow]:
    """Rows of a table with a header, separated by tabs where its name ends in .tsv, else by commas.

    Bytes that are not UTF-8 become surrogates, so that they spoil their own row only. Raises ManifestError for a file
    that cannot be read.
    """
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    try:
        # utf-8-sig: spreadsheets begin the file with a byte order mark.
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            try:
                for row in reader:
                    # A caption with an unquoted comma would lose its end.
                    too_long = row.pop(None, None) is not None
                    yield TableRow(reader.line_num, row, "more fields than columns" if too_long else "")
            except csv.Error as error:
                raise ManifestError(f"{table} line {reader.line_num} is not CSV: {error}.") from error
    except OSError as error:
        raise ManifestError(f"{table} cannot be read: {error}") from error


def json_rows(table: Path) -> Iterator[TableRow]:
    """One JSON object per line; empty lines are skipped. Raises ManifestError for a file that cannot be read."""
    try:
        # Read as bytes: one line in another encoding must not end the file.
        with open(table, "rb") as file:
            for line, data in enumerate(file, 1):
                if data.strip():
                    yield _json_row(line, data)
    except OSError as error:
        raise ManifestError(f"{table} cannot be read: {error}") from error


def _json_row(line: int, data: bytes) -> TableRow:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        return TableRow(line, {}, "not JSON", str(error))
    return TableRow(line, row) if isinstance(row, dict) else TableRow(line, {}, "not a JSON object")
