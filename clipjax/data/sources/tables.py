"""Tables that name image files and their captions: what a reader asks of one, and rows of JSON Lines."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.records import ManifestError
from clipjax.data.sources.fields import has_field, missing_column
from clipjax.files import text_encoding
from clipjax.json_files import parse_json

TABLES = (".csv", ".tsv", ".jsonl")
# The columns that the folder source and the commands of data_pipelines read unless others are named.
IMAGE_COLUMN, CAPTION_COLUMN = "image", "caption"
# Names that other tools give these columns, proposed in errors.
IMAGE_NAMES = ("image", "filepath", "file_path", "path", "image_path", "file", "filename", "file_name", "img", "photo")
CAPTION_NAMES = ("caption", "captions", "title", "text", "texts", "description", "alt", "alt_text", "sentence", "txt")
LONGEST_LINE = 10_000_000  # characters, which a row of a table may have
HEAD = 4096  # bytes from which the encoding is told


class TableRow(NamedTuple):
    line: int  # of the file, from 1; the last line of a row that has several
    values: Mapping[str, Any]  # by column
    fault: str = ""  # why the row cannot be used
    detail: str = ""  # what the parser said


class OptionNames(NamedTuple):
    """What the options that name columns are called where a user sets them."""

    image: str = "image_key"
    captions: str = "text_key"
    label: str = "label_key"
    delimiter: str = "delimiter"
    of: str = "the source's "
    in_training: str = "--config.data.train."

    def advice(self, *values: tuple[str, str]) -> str:
        """Which options to set to which values."""
        flags = " ".join(f"{self.in_training}{option}={shlex.quote(value)}" for option, value in values)
        named = " and ".join(f"{option}={value}" for option, value in values)
        return f"{self.of}{named} (in training, {flags})" if self.of else flags


@dataclass(frozen=True)
class Columns:
    """What a reader asks of a table."""

    image: str = IMAGE_COLUMN
    captions: tuple[str, ...] = (CAPTION_COLUMN,)  # "meta/text" is a field inside another
    label: str = ""  # "": none
    label_is_optional: bool = False  # the table may be without the column
    delimiter: str = ""  # of CSV; "": detected from the header
    options: OptionNames = OptionNames()

    @property
    def required(self) -> tuple[str, ...]:
        return (self.image, *self.captions, *([self.label] if self.label and not self.label_is_optional else []))

    def missing(self, where: object, name: str, columns: Collection[str]) -> str:
        """The message for a required column that a table with these columns does not have."""
        image = self.image if self.image in columns else _propose(columns, IMAGE_NAMES)
        caption = _propose([column for column in columns if column not in (image, self.label)], CAPTION_NAMES)
        values = [(self.options.image, image or "COLUMN")] if self.image not in columns else []
        if name in self.captions or not {caption.split("/")[0] for caption in self.captions} <= set(columns):
            values.append((self.options.captions, caption or "COLUMN"))
        values = values or [(self.options.label, "COLUMN")]
        similar = any(value == "COLUMN" for _, value in values)
        return missing_column(where, name, columns, self.options.advice(*values), similar)


@contextmanager
def open_table(table: Path) -> Iterator[TextIO]:
    r"""An open table whose lines keep their ends: "\n", "\r\n" or "\r".

    Bytes that are not UTF-8 become surrogates, so that they spoil their own row only. Raises ManifestError for a file
    that cannot be read, and for UTF-16 without a byte order mark or with damage.
    """
    try:
        with open(table, "rb") as file:
            head = file.read(HEAD)
        encoding = text_encoding(head)
        if encoding == "utf-8" and head.count(0) > len(head) // 5:
            raise ManifestError(f"{table} line 1 is UTF-16 without a byte order mark, or not text. Save it as UTF-8.")
        with open(table, encoding=encoding, errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        raise ManifestError(f"{table} cannot be read: {error}") from error
    except UnicodeError as error:
        raise ManifestError(f"{table} is not {encoding.upper()}: {error}. Save it as UTF-8.") from error


def lines_of(file: TextIO) -> Iterator[str | None]:
    """The lines of an open table, None for one of more than LONGEST_LINE characters, which is skipped in pieces."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = file.readline(LONGEST_LINE)
        yield None


def too_long(line: int) -> TableRow:
    """The row of a line that lines_of skipped."""
    return TableRow(line, {}, "row too long", f"it has more than {LONGEST_LINE:,} characters")


def json_rows(table: Path, columns: Columns) -> Iterator[TableRow]:
    """One JSON object per line; empty lines are skipped.

    Raises ManifestError for a file that cannot be read, and at its end for a required column that no row has.
    """
    missing, seen, fault, rows = set(columns.required), {}, "", 0
    with open_table(table) as file:
        for line, text in enumerate(lines_of(file), 1):
            if text is not None and not text.strip():
                continue
            row = _json_row(line, text) if text is not None else too_long(line)
            seen |= dict.fromkeys(row.values)
            rows += not row.fault
            missing -= {name for name in missing if has_field(row.values, name)}
            fault = fault or (
                f" Line {line} is {row.fault}{f': {row.detail}' * bool(row.detail)}." if row.fault else ""
            )
            yield row
    if fault and not rows:
        raise ManifestError(f"{table} is not a table of JSON objects, one a line.{fault}")
    for name in columns.required:
        if name in missing:
            raise ManifestError(columns.missing(table, name, seen))


def is_image_name(text: str) -> bool:
    return text.strip().lower().endswith(IMAGE_SUFFIXES)


def is_unicode(text: str) -> bool:
    """Whether a text of open_table was valid in its encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json_row(line: int, text: str) -> TableRow:
    if not is_unicode(text):
        return TableRow(line, {}, "not UTF-8")
    try:
        row = parse_json(text)
    except ValueError as error:
        return TableRow(line, {}, "not JSON", str(error))
    return TableRow(line, row) if isinstance(row, dict) else TableRow(line, {}, "not a JSON object")


def _propose(columns: Collection[str], names: Collection[str]) -> str:
    """The column with the first of these names in any case; "" without one."""
    by_name = {column.casefold(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), "")
