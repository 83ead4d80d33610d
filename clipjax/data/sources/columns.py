"""Columns chosen by the names that tables usually give them, for data that a user only points at."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipjax.config import ConfigError, require
from clipjax.data.records import ManifestError
from clipjax.data.sources.bucket_files import bucket_files
from clipjax.data.sources.folder import FolderConfig
from clipjax.data.sources.local_files import find_files
from clipjax.data.sources.parquet import ParquetConfig
from clipjax.data.sources.parquet_groups import open_file
from clipjax.data.sources.tables import CAPTION_NAMES, IMAGE_NAMES, open_table
from clipjax.files import split_lines

LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "cls", "target", "species")
DELIMITERS = (",", "\t", ";", "|")
PARQUET_IMAGES = (*IMAGE_NAMES, "jpg", "png", "webp", "image_bytes", "bytes")
LOOKED_AT = 200  # rows


def table_columns(table: Path, keys: dict[str, str]) -> FolderConfig:
    """The options that read a table, with its columns by their names, and the folder where its paths start.

    keys: columns that are named. Raises ConfigError for a table without a column of images, or of texts or labels.
    """
    try:
        columns, rows = _head(table)
    except ManifestError as error:
        raise ConfigError(f"--data: {error}") from error
    image = keys.get("image_key") or _first(columns, IMAGE_NAMES)
    label = keys.get("label_key") or _first(columns, LABEL_NAMES, besides=(image,))
    text = keys.get("text_key") or _first(columns, CAPTION_NAMES, besides=(image, label)) or label
    _require(str(table), columns, image, text)
    paths = [str(row.get(image) or "") for row in rows]
    return FolderConfig(
        path=str(table), image_key=image, text_key=text, label_key=label, data_dir=_start(table.parent, paths)
    )


def parquet_columns(config: ParquetConfig, keys: dict[str, str]) -> ParquetConfig:
    """The options that read Parquet files, with their columns by their names. Raises ConfigError as table_columns."""
    try:
        files = [str(file) for file in find_files(config, (".parquet",), buckets=True)]
        with open_file(files[0], bucket_files(files[:1], config.path)) as file:
            schema = file.schema_arrow
    except (ManifestError, OSError, ValueError) as error:
        raise ConfigError(f"--data={config.path}: {error}") from error
    columns = list(schema.names)
    # By number: two columns may have one name, which the source refuses where it reads them.
    binary = [name for number, name in enumerate(columns) if "binary" in str(schema.field(number).type)]
    image = keys.get("image_key") or _first(columns, PARQUET_IMAGES, among=binary) or next(iter(binary), "")
    label = keys.get("label_key") or _first(columns, LABEL_NAMES, besides=(image,))
    text = keys.get("text_key") or _first(columns, CAPTION_NAMES, besides=(image, label))
    _require(config.path, columns, image, text or label)
    text = text or label  # the name of the class
    return dataclasses.replace(config, image_key=image, text_key=text, label_key=label)


def _require(where: str, columns: Sequence[str], image: str, text: str) -> None:
    there = f"--data={where} has the columns {', '.join(columns[:20]) or 'none'}"
    require(bool(image), f"{there}; none is known to hold images. Name it with --image_key.")
    require(bool(text), f"{there}; none is known to hold captions or classes. Name one with --text_key or --label_key.")


def _first(
    columns: Sequence[str], names: Sequence[str], *, besides: Sequence[str] = (), among: Sequence[str] | None = None
) -> str:
    """The first of the names, in any case, that a column has; among: columns that may be taken, None: all."""
    known = {column.casefold(): column for column in columns if column not in besides}
    found = (known[name] for name in names if name in known)
    return next((column for column in found if among is None or column in among), "")


def _head(table: Path) -> tuple[list[str], list[dict[str, object]]]:
    """(names of the columns, the first rows) of a .csv, .tsv or .jsonl. Raises ManifestError."""
    with open_table(table) as file:
        lines = [line for _, line in zip(range(LOOKED_AT), (line for line in file if line.strip()), strict=False)]
    if table.suffix.lower() == ".jsonl":
        rows = list(_objects(lines))
        return list(dict.fromkeys(name for row in rows for name in row)), rows
    header = lines[0] if lines else ""
    choices = [[field.strip().strip('"') for field in header.strip("\r\n").split(mark)] for mark in DELIMITERS]
    marks = ["\t", *DELIMITERS] if table.suffix.lower() == ".tsv" else DELIMITERS
    mark = max(marks, key=lambda mark: len(choices[DELIMITERS.index(mark)]))
    names = choices[DELIMITERS.index(mark)]
    text = "".join(lines[1:])
    try:
        values = list(csv.reader(split_lines(text), delimiter=mark))
    except csv.Error:
        values = []
    return names, [dict(zip(names, (value.strip() for value in row), strict=False)) for row in values]


def _objects(lines: Sequence[str]) -> Iterator[dict[str, object]]:
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _start(folder: Path, paths: Sequence[str]) -> str:
    """The folder where a table's paths start; "": the table's own."""
    paths = [path.strip() for path in paths if path.strip()]
    if not paths or any((folder / path).is_file() for path in paths if not os.path.isabs(path)):
        return ""
    if all(os.path.isabs(path) for path in paths):
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    here = [Path.cwd(), *folder.absolute().parents]
    return next((str(start) for start in here if any((start / path).is_file() for path in paths)), "")
