"""Image files as a source: a folder with captions beside the images, or a table of paths and captions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.config import SourceConfig, nearest
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import fields

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".jsonl")
LONGEST_FIELD = 10_000_000  # characters of a CSV field
MAX_IMAGE = 1 << 30  # bytes of a file


Fault = tuple[str, str]  # cause, message


class Entry(NamedTuple):
    """An image and what the table says of it; a sidecar is read with the image."""

    path: str  # from the root
    position: int  # line of the table, or number of the image
    texts: tuple[str, ...] | None = None
    label: int = -1
    fault: Fault | None = None  # of its row


class FolderSource:
    """Images of config.path, one record each.

    A folder (with a subfolder of config.split's name: that one): all images in it and below, NAME.txt beside NAME.jpg
    with a caption a line. A .csv or .tsv with a header, or a .jsonl: paths in the column config.image_key, captions in
    config.text_key (several columns joined by commas; lists in .jsonl), class names in config.label_key if there is
    such a column. Rows of one image are one record. Paths start from the table's folder or config.data_dir.

    The list of images is in memory: some 300 bytes each. Nothing outside the folder is read: absolute paths, "..", and
    links that lead out are bad records. Raises ManifestError for a folder or table that is missing, columns that are
    not there, and a table that cannot be read.
    """

    def __init__(self, config: SourceConfig):
        path = Path(config.path)
        self.class_names: tuple[str, ...] = ()
        if path.suffix.lower() in TABLES and path.is_file():
            self.table, root = str(path), Path(config.data_dir) if config.data_dir else path.parent
            self.entries, self.class_names = _table_entries(path, config)
        elif path.is_dir():
            self.table, root = "", path / config.split if config.split and (path / config.split).is_dir() else path
            self.entries = [Entry(name, number) for number, name in enumerate(_image_files(root))]
        else:
            raise ManifestError(f"'{path}' is neither a folder of images nor a {', '.join(TABLES)} table.")
        self.root = root.resolve()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = self.entries[index]
        if entry.fault:
            raise RecordError(*entry.fault)
        texts = self.sidecar(entry.path) if entry.texts is None else list(entry.texts)
        if not texts:
            raise RecordError("no caption", f"'{entry.path}' has no caption")
        return {
            "image": self.read(entry.path, MAX_IMAGE),
            "texts": texts,
            "key": entry.path,
            "label": entry.label,
            "pair_id": -1,
        }

    def where(self, index: int) -> tuple[str, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = self.entries[index]
        return (self.table, entry.position) if self.table else (str(self.root / entry.path), 0)

    def sidecar(self, image: str) -> list[str]:
        path = str(Path(image).with_suffix(".txt"))
        if not (self.root / path).exists():
            return []
        lines = fields.decode(self.read(path, fields.MAX_CAPTION), f"'{path}'").splitlines()
        return list(dict.fromkeys(line.strip() for line in lines if line.strip()))

    def read(self, path: str, limit: int) -> bytes:
        """Raises RecordError for what lies outside the root, is too large or cannot be read."""
        try:
            whole = (self.root / path).resolve()
            if not whole.is_relative_to(self.root):
                raise RecordError("path outside the folder", f"'{path}' is not in {self.root}")
            # Nor a pipe, on which reading waits for ever.
            if not whole.is_file():
                raise RecordError("unreadable record", f"'{path}' is no file in {self.root}")
            size = whole.stat().st_size
            if size > limit:
                raise RecordError("record too large", f"'{path}' has {size} bytes, the limit is {limit}")
            return whole.read_bytes()
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError("unreadable record", f"'{path}': {error}") from error


def _image_files(root: Path) -> list[str]:
    """Paths from the root, sorted. Linked folders are not entered."""
    found = []

    def refuse(error: OSError) -> None:
        raise ManifestError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, _, names in os.walk(root, onerror=refuse):
        inner = os.path.relpath(folder, root)
        found += [
            name if inner == "." else f"{inner}/{name}" for name in names if os.path.splitext(name)[1].lower() in IMAGES
        ]
    return sorted(found)


def _table_entries(table: Path, config: SourceConfig) -> tuple[list[Entry], tuple[str, ...]]:
    """(entries in the order of the table, class names sorted). Raises ManifestError."""
    texts: dict[str, list[str]] = {}
    first: dict[str, Entry] = {}  # by path; a row that names none is an entry of its own
    labels: dict[str, str] = {}
    columns: dict[str, None] = {}
    for line, row, fault in _rows(table):
        columns |= dict.fromkeys(row)
        path = row.get(config.image_key)
        path = path.strip() if isinstance(path, str) else ""
        try:
            found = fields.captions(row, config.text_key)
        except RecordError as error:
            found, fault = [], fault or (error.cause, str(error))
        if fault or not path:
            first[f"\0{line}"] = Entry(path, line, fault=fault or ("no image path", "the row names no image"))
            continue
        first.setdefault(path, Entry(path, line))
        texts.setdefault(path, []).extend(found)
        if row.get(config.label_key) not in (None, ""):
            labels.setdefault(path, str(row[config.label_key]).strip())
    asked = [config.image_key, *(key.strip().split("/")[0] for key in config.text_key.split(","))]
    for number, name in enumerate(asked):
        if name not in columns:
            known = ", ".join(f"'{column}'" for column in columns) or "none"
            hint = nearest(name, columns).split(" Known")[0] if columns else ""
            key = "text_key" if number else "image_key"
            raise ManifestError(f"{table} has no column '{name}'. It has {known}.{hint} Set the source's {key}.")
    names = tuple(sorted(set(labels.values())))
    numbers = {name: number for number, name in enumerate(names)}
    entries = [
        entry
        if entry.fault
        else entry._replace(texts=tuple(dict.fromkeys(texts[path])), label=numbers.get(labels.get(path, ""), -1))
        for path, entry in first.items()
    ]
    return entries, names


def _rows(table: Path) -> Iterator[tuple[int, Mapping[str, Any], Fault | None]]:
    """(line, {column: value}, what is wrong with it) of each row."""
    delimiter = DELIMITERS.get(table.suffix.lower())
    try:
        if delimiter is None:
            with open(table, "rb") as file:
                yield from ((line, *_object(data)) for line, data in enumerate(file, 1) if data.strip())
            return
        csv.field_size_limit(LONGEST_FIELD)
        # utf-8-sig: spreadsheets begin the file with a byte order mark. Bytes that are no UTF-8 spoil their row alone.
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            for row in reader:
                # A caption with an unquoted comma would lose its end.
                spilt = row.pop(None, None) is not None
                yield reader.line_num, row, ("corrupt record", "more fields than columns") if spilt else None
    except (OSError, csv.Error) as error:
        raise ManifestError(f"{table} cannot be read: {error}") from error


def _object(line: bytes) -> tuple[Mapping[str, Any], Fault | None]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, ("corrupt record", f"the line is not JSON: {error}")
    return (row, None) if isinstance(row, dict) else ({}, ("corrupt record", "the line is no JSON object"))
