"""Parquet files with encoded images and captions as a source."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from clipjax.config import SourceConfig
from clipjax.config.fields import ORDER, experiment
from clipjax.data.order import Windowed
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.bucket_files import BucketFiles, bucket_files
from clipjax.data.sources.fields import captions, class_number
from clipjax.data.sources.local_files import HUB_FOLDER, find_files, read_below
from clipjax.data.sources.parquet_groups import WINDOW_BYTES, RowGroups, image_bytes, open_file, read_file_group
from clipjax.data.sources.parquet_labels import LabelColumn, common_names, describe_labels
from clipjax.data.sources.parquet_schema import (
    check_has_bytes,
    check_image,
    check_same,
    check_text,
    has_texts,
    warn_unless_number,
)
from clipjax.storage import StorageError

SUFFIXES = (".parquet",)
PAIR_ID = "pair_id"
MAX_GROUP = 2 << 30  # bytes of one row group
MAX_IMAGE = 256 << 20  # bytes of a file
OPENING_THREADS = 8


@dataclass(frozen=True)
class ParquetConfig(SourceConfig):
    """path: files, by their folder, file or pattern ("data/*.parquet")."""

    name: str = "parquet"
    image_key: str = experiment("image", fixed=ORDER)  # column of bytes, or of Hugging Face's {bytes, path}
    # columns of texts or of lists of texts, joined by commas; "items/text" is a field inside another. The default may
    # be missing where label_key has class names and no column has texts; to caption with class names, name its column
    text_key: str = experiment("text", fixed=ORDER)
    label_key: str = experiment("label", fixed=ORDER)  # column of class numbers or names, if there is one; "": none


class ParquetSource:
    """The rows of one or many files (see local_files.find_files).

    Labels are read by the rule of clipjax.data.labels. Class names are Hugging Face's ClassLabel, those of a file
    classnames.txt beside the files or in the folder above, or else the labels that are texts, sorted; for the last,
    the label columns are read when the source is opened. A row without a text takes the name of its class. A column
    pair_id is read if there is one.

    A row cannot be decoded without its row group. Therefore training takes row groups in a random order and shuffles
    the rows of a window, which is as many row groups as fit in WINDOW_BYTES (clipjax.data.order.Windowed). The groups
    last used stay decoded, up to KEPT_BYTES or two row groups, whichever is more; each thread may hold one more.

    Raises ManifestError for files that are missing or not Parquet, for columns that are not there, and for row groups
    above MAX_GROUP.
    """

    def __init__(self, config: ParquetConfig):
        self.keys = config
        files = find_files(config, SUFFIXES, buckets=True)
        self.bucket = bucket_files([str(file) for file in files], config.path)
        described = [_describe(files[0], config, self.bucket)]
        with ThreadPoolExecutor(OPENING_THREADS) as pool:
            described += pool.map(lambda file: _describe(file, config, self.bucket, described[0]), files[1:])
        self.files = [str(file) for file in files]
        # Of each row group: its file, its number in the file, its first row in the file.
        self.groups = np.array(
            [
                (file, group, first)
                for file, one in enumerate(described)
                for group, first in enumerate(np.cumsum([0, *one.rows[:-1]])[: len(one.rows)])
            ],
            np.int64,
        ).reshape(-1, 3)
        self.starts = np.cumsum([0, *(count for one in described for count in one.rows)])
        self.columns = [one.columns for one in described]
        labels = [one.labels for one in described]
        self.names = common_names(files, labels, lambda path: _distinct(path, config.label_key, self.bucket))
        self.class_names = self.names.names
        # Computed from what the files say, so that it is the same on every machine.
        self.window = max(1, WINDOW_BYTES // max(1, *(one.largest_group for one in described)))
        self.cache = RowGroups()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        group, row = self.find(index)
        file, number, _ = self.groups[group].tolist()
        table = self.cache.get(group, self.files[file], number, self.columns[file], self.bucket)
        try:
            values = table.slice(row, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            raise RecordError("not UTF-8", str(error)) from error
        except Exception as error:  # Arrow raises many kinds for values that its own writers would not write
            raise RecordError("unreadable record", f"{type(error).__name__}: {error}") from error
        image = image_bytes(values[self.keys.image_key])
        if image is None:
            image = self.image_file(self.files[file], values[self.keys.image_key])
        label = self.names.number(values.get(self.keys.label_key), f"column '{self.keys.label_key}'")
        texts = captions(values, self.keys.text_key)
        if not texts and 0 <= label < len(self.class_names):
            texts = [self.class_names[label]]
        if not texts:
            raise RecordError("no caption", f"column(s) '{self.keys.text_key}' have no text")
        path, position = self.where(index)
        key, pair_id = f"{Path(path).name}/{position}", _int(values.get(PAIR_ID), PAIR_ID)
        return {"image": image, "texts": texts, "key": key, "label": label, "pair_id": pair_id}

    def image_file(self, file: str, value: Any) -> bytes:
        """The image that Hugging Face's {bytes, path} gives by its path only, from the folder of the Parquet file.

        For a file in HUB_FOLDER, from the folder above, if it is not there. Raises RecordError.
        """
        path = value.get("path") if isinstance(value, dict) else None
        if not path or not isinstance(path, str):
            raise RecordError("no image", f"column '{self.keys.image_key}' has no bytes")
        if self.bucket:
            raise RecordError("no image", f"column '{self.keys.image_key}' names a file, and a bucket's are not read")
        folder = Path(file).parent
        if folder.name == HUB_FOLDER and not os.path.isfile(folder / path):
            folder = folder.parent
        return read_below(folder.resolve(), path, MAX_IMAGE)

    def where(self, index: int) -> tuple[str, int]:
        group, row = self.find(index)
        file, _, first = self.groups[group].tolist()
        return self.files[file], first + row

    def order(self, seed: int) -> Windowed:
        return Windowed(self.starts, self.window, seed)

    def find(self, index: int) -> tuple[int, int]:
        """(row group, row in it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return group, index - int(self.starts[group])


class _Description(NamedTuple):
    path: Path
    rows: list[int]  # of each row group
    columns: list[str]  # to read
    labels: LabelColumn
    largest_group: int  # bytes


def _describe(
    path: Path, config: ParquetConfig, bucket: BucketFiles | None, first: _Description | None = None
) -> _Description:
    """Raises ManifestError. first: the description of a file whose columns this one must have too."""
    try:
        return _describe_sound(path, config, bucket, first)
    except (ManifestError, RecordError, StorageError, MemoryError):
        raise
    except Exception as error:  # Arrow raises many kinds for damaged metadata
        raise ManifestError(f"{path} is damaged: {type(error).__name__} {error!s:.200}.") from error


def _describe_sound(
    path: Path, config: ParquetConfig, bucket: BucketFiles | None, first: _Description | None
) -> _Description:
    with open_file(path, bucket) as file:
        metadata, schema = file.metadata, file.schema_arrow
        labels = describe_labels(path, file, config.label_key, ParquetConfig.label_key)
    names = labels.names.names
    texts = [key.strip() for key in config.text_key.split(",")]
    check_image(path, schema, config.image_key, "the source's image_key")
    if bucket:
        check_has_bytes(path, metadata, config.image_key)
    # An image classification set has no captions; the names of its classes are the texts unless text_key is set.
    # Prompts need no column.
    from_names = config.text_key == ParquetConfig.text_key and not has_texts(
        schema, (config.image_key, config.label_key)
    )
    for text in texts:
        if not (names and (from_names or config.prompts or text == config.label_key)):
            check_text(path, schema, text, "the source's text_key", config.label_key if names else "")
    warn_unless_number(path, schema, PAIR_ID)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ManifestError(
            f"{path} is damaged: its footer says {metadata.num_rows} rows, and {min(rows, default=0)} to "
            f"{max(rows, default=0)} in its {len(rows)} row groups."
        )
    if largest > MAX_GROUP:
        raise ManifestError(
            f"{path} has a row group of {largest} bytes, which would be decoded for each of its rows; the limit is "
            f"{MAX_GROUP}. Write it again with smaller row groups, or build records of it (docs/data_pipelines.md)."
        )
    wanted = {config.image_key, *texts, *(text.split("/")[0] for text in texts), config.label_key, PAIR_ID}
    columns = [name for name in schema.names if name in wanted]
    if first:
        check_same(first.path, first.columns, path, columns)
    return _Description(path, rows, columns, labels, largest)


def _distinct(path: Path, column: str, bucket: BucketFiles | None) -> list[Any]:
    """The distinct values of a column, apart from those that cannot be read, whose records are bad."""
    values: dict[Any, None] = {}
    with open_file(path, bucket) as file:
        count = file.num_row_groups
    for number in range(count):
        try:
            for value in read_file_group(str(path), number, [column], bucket)[column].unique():
                with suppress(UnicodeDecodeError):
                    values[value.as_py()] = None
        except RecordError as error:
            logging.warning("Its labels are not among the class names: %s", error)
    return list(values)


def _int(value: Any, name: str) -> int:
    """-1: none, as for NaN and in a column of another type. Raises RecordError for 1.5, and for what no int32 holds."""
    if not isinstance(value, int | float) or value != value:
        return -1
    if isinstance(value, float) and not value.is_integer():
        raise RecordError("corrupt record", f"column '{name}' is {value}, expected a whole number")
    return class_number(int(value), f"column '{name}'")
