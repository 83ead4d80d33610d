"""Tables whose rows name an image file and its captions: what the commands `csv` and `jsonl` share."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipjax.data.labels import CAUSE, ClassNames, names_beside, names_in, names_of_texts, read_label
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import csv_tables, tables
from clipjax.data.sources.fields import pick, texts_of
from clipjax.data.sources.folder import FolderConfig, one_spelling, value_of
from clipjax.data.sources.tables import CAPTION_COLUMN, IMAGE_COLUMN, Columns, OptionNames
from data_pipelines.command import PipelineError, Skips, local_path
from data_pipelines.files import DEFAULT_SPLITS, Item, add_image_flags, file_sha256, split_by_share, write_items
from data_pipelines.input_content import content_fields

# The usable rows of a table, (line number, column -> value); the others go to skips.
RowsOf = Callable[[Path, Columns, Skips], Iterator[tuple[int, Mapping[str, Any]]]]
FLAGS = OptionNames("--image_column", "--caption_columns", "--label_column", "--delimiter", of="", in_training="")
NOT_TEXT = "caption is not text"
SHOWN = 60  # characters of such a value


def add_table_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=local_path, required=True, help="the table")
    parser.add_argument("--image_column", default=IMAGE_COLUMN, help="column with the image path; default %(default)s")
    parser.add_argument(
        "--caption_columns", default=CAPTION_COLUMN, help="columns with captions, joined by commas; default %(default)s"
    )
    parser.add_argument(
        "--label_column", default="", help="column with the number or name of a class, for zero-shot classification"
    )
    add_class_names_flag(parser)
    parser.add_argument(
        "--image_root",
        type=local_path,
        default=None,
        help="folder that image paths start from; default: the table's folder",
    )
    add_image_flags(parser)


def add_class_names_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class_names",
        type=local_path,
        default=None,
        help="file of class names, one per line: numbers are its lines, from 0, and names are looked up in it; "
        "default: a classnames.txt beside the input, or else the names that occur, sorted",
    )


def names_in_source(names: ClassNames, numbers: bool) -> dict[str, str]:
    """What the manifest's source says about class names that are not simply the labels, sorted: records change with it.

    numbers: whether labels are numbers, which older versions sorted as texts.
    """
    digest = hashlib.sha256("\n".join(names.names).encode()).hexdigest()
    return {"class_names_sha256": digest} if names.path or numbers else {}


def build_from_rows(
    out: Path,
    table: Path,
    rows_of: RowsOf,
    *,
    image_column: str = IMAGE_COLUMN,
    caption_columns: str = CAPTION_COLUMN,
    label_column: str = "",
    class_names: Path | None = None,
    delimiter: str = "",
    image_root: Path | None = None,
    splits: str = DEFAULT_SPLITS,
    shorter_side: int = 0,
    licence: str = "",
    overwrite: bool = False,
) -> dict:
    """Rows -> records; returns the manifest. Rows of one image become one record.

    The keyword arguments are the commands' flags. Raises PipelineError for a column that no row has, and for
    a table without a usable row.
    """
    skips, captions = Skips(), tuple(name.strip() for name in caption_columns.split(","))
    columns = Columns(image_column, captions, label_column, delimiter=delimiter, options=FLAGS)
    gathered = gather(table, rows_of, columns, skips)
    names, labels = number_labels(table, gathered, class_names, skips)
    root = Path(image_root or table.parent)
    items = [
        Item(key, root / key, tuple(dict.fromkeys(entry.texts)), labels.get(key)) for key, entry in gathered.items()
    ]
    return write_items(
        out,
        items,
        split_of=split_by_share(splits),
        shorter_side=shorter_side,
        licence=licence,
        name=table.name,
        class_names=names.names,
        skips=skips,
        source={
            "pipeline": table.suffix.lstrip(".").lower(),
            "table": table.name,
            "sha256": file_sha256(table),
            **content_fields(out, [(item.key, item.path) for item in items], overwrite),
            "columns": [image_column, *captions, label_column],
            "splits": splits,
            **names_in_source(names, bool(labels) and not names.names),
            **({"delimiter": delimiter} if delimiter else {}),
        },
        overwrite=overwrite,
    )


@dataclass
class Entry:
    """What the rows of one image say about it, together."""

    texts: list[str] = field(default_factory=list)
    labels: dict[Any, tuple[Any, str]] = field(default_factory=dict)  # as read -> (as in the table, where it is first)


def csv_rows(table: Path, columns: Columns, skips: Skips) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The complete rows of a CSV or TSV table. Raises PipelineError unless it is Unicode."""
    for line, row in _whole(table, csv_tables.csv_rows(table, columns), skips):
        if not tables.is_unicode("".join(text for text in (*row, *row.values()) if text)):
            raise PipelineError(f"{table} line {line} is not UTF-8. Convert it, for example with iconv.")
        yield line, row


def json_rows(table: Path, columns: Columns, skips: Skips) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The JSON objects of a table with one per line."""
    yield from _whole(table, tables.json_rows(table, columns), skips)


def gather(table: Path, rows_of: RowsOf, columns: Columns, skips: Skips) -> dict[str, Entry]:
    """Image path -> its captions and label, in the order of the table. Raises PipelineError for a missing column."""
    gathered: dict[str, Entry] = {}
    unread = False
    for line, row in rows_of(table, columns, skips):
        place = f"{table.name} line {line}"
        unread |= FolderConfig.label_key in row
        path = row.get(columns.image)
        captions = [pick(row, name) for name in columns.captions]
        texts = [text for caption in captions for text in _texts(caption)]
        if not isinstance(path, str) or not path.strip():
            skips.add("no image path", place)
            continue
        others = [value for caption in captions for value in _not_text(caption)]
        if others:  # the row keeps its other captions
            skips.add(NOT_TEXT, f"{place}: {path}: {json.dumps(others[0])[:SHOWN]}")
        elif not texts:
            skips.add("no caption", f"{place}: {path}")
        if texts:
            value, where = value_of(row, columns.label), f"label of {place}"
            try:
                label = read_label(value, where)
            except RecordError as error:
                skips.add(error.cause, str(error))
                continue
            entry = gathered.setdefault(one_spelling(path), Entry())
            entry.texts += texts
            if label is not None:
                entry.labels.setdefault(label, (value, where))
    if not columns.label and unread:
        logging.warning("Column '%s' is not read; to keep labels, set --label_column", FolderConfig.label_key)
    return gathered


def number_labels(
    table: Path, gathered: dict[str, Entry], class_names: str | Path | None, skips: Skips
) -> tuple[ClassNames, dict[str, int]]:
    """(class names, image path -> label), by the rule of clipjax.data.labels.

    Entries with two labels, or one that is no class, are taken out of `gathered` and go to skips. class_names: the file
    that --class_names names. Raises ManifestError for labels of which some are numbers and some are names.
    """
    names = names_in(class_names) if class_names else names_beside(table.parent)
    if not names.names:
        found = ((label, where) for entry in gathered.values() for label, (_, where) in entry.labels.items())
        names = names_of_texts(found, str(table))
    labels: dict[str, int] = {}
    for key, entry in list(gathered.items()):
        read = list(entry.labels.values())
        try:
            if read[1:]:
                (one, place), (other, other_place), *_ = read
                raise RecordError(CAUSE, f"{key}: {place} is '{one}', {other_place} is '{other}'")
            if read:
                labels[key] = names.number(*read[0])
        except RecordError as error:
            skips.add(error.cause, str(error))
            del gathered[key]
    return names, labels


def _whole(table: Path, rows: Iterable[tables.TableRow], skips: Skips) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        for row in rows:
            if row.fault:
                place = f"{table.name} line {row.line}"
                skips.add(row.fault, f"{place}: {row.detail}" if row.detail else place)
            else:
                yield row.line, row.values
    except ManifestError as error:
        raise PipelineError(str(error)) from error


def _not_text(value: object) -> list[Any]:
    """What is neither a caption nor the absence of one: a number, an object, or such a value or a null in a list."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [one for one in values if not isinstance(one, str | bytes)]


def _texts(value: object) -> list[str]:
    """A caption or a list of captions as a list of non-empty texts, white space joined."""
    return [" ".join(text.split()) for text in texts_of(value) if text.strip()]
