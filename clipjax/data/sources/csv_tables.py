"""Rows of CSV and TSV tables.

CSV is RFC 4180's: a field may be enclosed in quotation marks; inside, separators and line ends are text and a quotation
mark is doubled. Any of DELIMITERS may separate the fields. In TSV, a table named .tsv whose fields are separated by
tabs, quotation marks are text like other characters, and a row is a line.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from clipjax.data.records import ManifestError
from clipjax.data.sources.tables import (
    LONGEST_LINE,
    Columns,
    TableRow,
    is_image_name,
    is_unicode,
    json_rows,
    lines_of,
    open_table,
    too_long,
)

DELIMITERS = (",", ";", "\t", "|")
MANY_LINES = 10  # in a quoted field, all of them with as many fields as the table has columns
CURE = "Close the quotation mark in its line, or write it twice where it is part of a quoted text"


def table_rows(table: Path, columns: Columns) -> Iterator[TableRow]:
    """Rows of a .jsonl table, or of any other as csv_rows reads it."""
    return json_rows(table, columns) if table.suffix.lower() == ".jsonl" else csv_rows(table, columns)


def csv_rows(table: Path, columns: Columns) -> Iterator[TableRow]:
    """Rows of a table whose first line that is not empty names its columns; empty lines are skipped.

    columns.delimiter separates the fields, or that of DELIMITERS with which the header has the required columns.

    Raises ManifestError for a file that cannot be read, a header without a required column or with one twice, and a
    quotation mark that does not close, or that closes only after lines which look like rows.
    """
    csv.field_size_limit(LONGEST_LINE)
    with open_table(table) as file:
        lines = _Lines(file)
        try:
            style, names = _header(table, lines, columns)
        except _TooLongError:
            raise ManifestError(f"{table} line {lines.number} has more than {LONGEST_LINE:,} characters.") from None
        reader = style.reader(lines)
        while True:
            lines.of_row.clear()
            try:
                fields = next(reader, None)
            except _TooLongError:
                yield too_long(lines.number)
                continue
            except csv.Error as error:
                fields = _mended(table, lines, style, error)
                if not fields:
                    detail = f"{error}; inside a quoted text, write it twice"
                    yield TableRow(lines.number, {}, "stray quotation mark", detail)
                    continue
            if fields is None:
                return
            if fields:
                _check_swallowed(table, lines, style, names, fields, names.index(columns.image))
                yield _row(lines, style, names, fields, columns.required)


class _TooLongError(Exception):
    """A line was skipped; csv.reader forgets the row that it began."""


class _Lines:
    """Lines for csv.reader, with their numbers and those of the row that is being read."""

    def __init__(self, file: TextIO):
        self.lines, self.number, self.of_row = lines_of(file), 0, []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        if line is None:
            raise _TooLongError
        self.of_row.append(line)
        return line

    @property
    def first(self) -> int:
        """The number of the row's first line."""
        return self.number - len(self.of_row) + 1


class _Style(NamedTuple):
    delimiter: str
    quoted: bool  # RFC 4180's quotation marks; False: they are text
    spaced: bool = False  # a space follows each delimiter, as in "image, caption", and is no text

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(lines, delimiter=self.delimiter, quoting=quoting, skipinitialspace=self.spaced, strict=True)

    def fields(self, line: str) -> list[str]:
        """The fields of one line, stripped; [] for one that cannot be split alone. Spaces may follow a quoted field."""
        for each in dict.fromkeys((line, re.sub(rf'" +(?={re.escape(self.delimiter)}|[\r\n]|$)', '"', line))):
            try:
                return [field.strip() for field in next(self.reader(iter([each])), [])]
            except csv.Error:
                continue
        return []

    @property
    def shown(self) -> str:
        return "tab" if self.delimiter == "\t" else f"'{self.delimiter}'"


def _header(table: Path, lines: _Lines, columns: Columns) -> tuple[_Style, list[str]]:
    """(how the fields are separated, the names of the columns). Reads the header's lines."""
    is_tsv = table.suffix.lower() == ".tsv"
    delimiter = _delimiter(table, columns)
    line = next((line for line in lines if line.strip()), "")
    declared = re.fullmatch(r'"?sep=(.)"?\s*', line)  # Excel's own mark
    if declared:
        delimiter, line = delimiter or declared[1], next((line for line in lines if line.strip()), "")
    if not line:
        raise ManifestError(f"{table} is empty. Its first line must name the columns, such as image,caption.")
    if not is_unicode(line) or "\0" in line:
        raise ManifestError(f"{table} line {lines.number} is not UTF-8 text. Save it as UTF-8.")
    first = "\t" if is_tsv else ","
    tried = [delimiter] if delimiter else [first, *(each for each in DELIMITERS if each != first)]
    styles = [_Style(each, not (is_tsv and each == "\t")) for each in tried]
    # max() takes the first of equals, which is the one that the table's name promises.
    style = max(styles, key=lambda style: (set(columns.required) <= set(style.fields(line)), len(style.fields(line))))
    style = style._replace(spaced=style.quoted and line.count(style.delimiter) == line.count(f"{style.delimiter} ") > 0)
    names = style.fields(line)
    if not names:
        try:
            names = [name.strip() for name in next(style.reader(itertools.chain([line], lines)))]
        except csv.Error as error:
            raise ManifestError(f"{table} line {lines.number} is not CSV: {error}.") from error
    for name in columns.required:
        if name not in names:
            raise ManifestError(_missing(table, style, line, name, names, columns, bool(delimiter)))
    for name in (*columns.required, columns.label):
        if name and names.count(name) > 1:
            raise ManifestError(f"{table} has {names.count(name)} columns '{name}'. Give each a name of its own.")
    return style, names


def _missing(
    table: Path, style: _Style, line: str, name: str, names: Sequence[str], columns: Columns, is_set: bool
) -> str:
    """Why the header has no column `name`, and what to do."""
    if set(columns.required) <= set(style._replace(quoted=True).fields(line)):
        return (
            f"{table} has its columns' names in quotation marks, which are part of the text in a .tsv. Give it a name "
            "that ends in .csv: then quotation marks are read as in CSV."
        )
    if any(map(is_image_name, names)):
        example = style.delimiter.join(("image", *["caption"] * (len(names) > 1)))
        return (
            f"{table} has no header: its first line, {line.strip()[:80]!r}, looks like a row. Write a line before it "
            f"that names the columns, such as {example!r}."
        )
    separator = re.search(r"[^\w\s\"'.,()/\\-]", line)
    if len(names) == 1 and separator:
        return (
            f"{table} has no column '{name}': separated by {style.shown}, its header is one column, "
            f"{names[0][:80]!r}. If '{separator[0]}' separates the columns, set "
            f"{columns.options.advice((columns.options.delimiter, separator[0]))}."
        )
    how = f" Fields are separated by {style.shown}"
    how += f", as {columns.options.delimiter} says." if is_set else "."
    return columns.missing(table, name, names) + how


def _delimiter(table: Path, columns: Columns) -> str:
    delimiter = {"\\t": "\t", "tab": "\t"}.get(columns.delimiter, columns.delimiter)
    if len(delimiter) > 1 or delimiter.isalnum() or delimiter in ('"', "\r", "\n", "\0"):
        raise ManifestError(
            f"{table}: {columns.options.delimiter}={columns.delimiter!r} cannot separate fields. Set one character, "
            "such as ';' or 'tab'; without it, ',', ';', tab and '|' are tried."
        )
    return delimiter


def _row(lines: _Lines, style: _Style, names: list[str], fields: list[str], required: Sequence[str]) -> TableRow:
    values = dict(itertools.zip_longest(names, fields[: len(names)]))
    if any("\0" in line for line in lines.of_row):
        return TableRow(lines.number, values, "zero byte", "as in a damaged file, or in UTF-16")
    # A caption with an unquoted comma would lose its end.
    if len(fields) > len(names):
        return TableRow(lines.number, values, "more fields than columns")
    if not style.quoted and '"' in lines.of_row[0]:
        quoted = next((name for name in required if _looks_quoted(values[name] or "")), None)
        if quoted is not None:
            detail = f"{values[quoted][:80]!r}, but a .tsv has no quoting: name the table .csv, or write it without"
            return TableRow(lines.number, values, "quoted as in CSV", detail)
    return TableRow(lines.number, values)


def _looks_quoted(field: str) -> bool:
    """Whether a field of a TSV is written as CSV does where a text has quotation marks: "a 5"" disc"."""
    inner = field[1:-1]
    return field[:1] == field[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _mended(table: Path, lines: _Lines, style: _Style, error: csv.Error) -> list[str]:
    """The fields of a row that csv.reader refused, if it only has spaces after a quoted field; else [].

    Raises ManifestError where other rows may have been lost with it.
    """
    if style.quoted and (len(lines.of_row) > 1 or "unexpected end" in str(error)):
        raise ManifestError(
            f"{table} line {lines.first + _opened(lines.of_row, style)}: a quotation mark opens here and does not "
            f"close as CSV asks, read up to line {lines.number} ({error}). {CURE}.{_tsv_cure(style)}"
        ) from error
    if "expected after" not in str(error):
        raise ManifestError(f"{table} line {lines.number} is not CSV: {error}.") from error
    return style.fields(lines.of_row[0])


def _check_swallowed(
    table: Path, lines: _Lines, style: _Style, names: list[str], fields: list[str], image: int
) -> None:
    """Raises ManifestError for a quoted field with lines that look like rows: with an image's path in its column.

    MANY_LINES that all have as many fields as the table has columns look like rows, too.
    """
    if len(lines.of_row) == 1 or len(names) == 1:
        return
    for name, field in itertools.zip_longest(names, fields, fillvalue=""):
        inner = re.split("\r\n|\r|\n", field)[1:]
        rows = [pieces for pieces in (line.split(style.delimiter) for line in inner) if len(pieces) == len(names)]
        own = fields[image] if image < len(fields) else ""
        has_paths = any(_is_path(pieces[image], own) for pieces in rows)
        if has_paths or len(rows) >= max(MANY_LINES, len(inner) - 1):
            raise ManifestError(
                f"{table} line {lines.first + _opened(lines.of_row, style)}: a quotation mark that opens here, in "
                f"column '{name}', closes only after lines that look like rows, in line {lines.number}. "
                f"{CURE}.{_tsv_cure(style)}"
            )


def _is_path(text: str, own: str) -> bool:
    """Whether a text is an image's path or URL, or an identifier like the row's own: 000123, 9f86d081."""
    text, own = text.strip(), own.strip()
    if is_image_name(text) or "://" in text:
        return True
    plain = all(not re.search(r"\s", each) and re.search(r"[0-9]", each) for each in (text, own))
    return plain and (len(text) == len(own) or (text.isdecimal() and own.isdecimal()))


def _tsv_cure(style: _Style) -> str:
    return " If quotation marks are text in this table, name it .tsv." if style.delimiter == "\t" else ""


def _opened(lines: Sequence[str], style: _Style) -> int:
    """The number, from 0, of the line in which the last quoted field of a row begins that has several lines."""
    opened, quoted = 0, False
    for number, line in enumerate(lines):
        at_start, position = not quoted and number == 0, 0
        while position < len(line):
            letter = line[position]
            if quoted and letter == '"':
                if line[position + 1 : position + 2] == '"':
                    position += 1
                else:
                    quoted = False
            elif not quoted and letter == '"' and at_start:
                quoted, opened = True, number
            at_start = not quoted and (letter == style.delimiter or (at_start and letter == " " and style.spaced))
            position += 1
    return opened
