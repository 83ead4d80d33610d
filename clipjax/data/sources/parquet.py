"""Parquet files with encoded images and captions as a source."""

from __future__ import annotations

import collections
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipjax.config import SourceConfig, nearest
from clipjax.data.order import Windowed
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import fields
from clipjax.data.sources.local_files import find_files

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet",)
PAIR_ID = "pair_id"
WINDOW_BYTES = 128 << 20  # of the row groups whose rows are shuffled among each other
KEPT_BYTES = 2 * WINDOW_BYTES  # of decoded row groups, in each process: where a window ends, the next one's are read
MAX_GROUP = 2 << 30  # bytes of one
OPENING_THREADS = 8


class ParquetSource:
    """The rows of one or many files (see local_files.find_files).

    config.image_key: a column of bytes, or a struct with the field `bytes` (Hugging Face's Image). config.text_key: a
    column of text or of lists of text, or several, joined by commas; "items/text" is a field inside another. Without
    one, the class name. config.label_key: an integer column, if there is one; its names come from Hugging Face's
    ClassLabel. A column pair_id is read if there is one.

    A row cannot be decoded without its row group. So training takes row groups in a random order and shuffles the rows
    of as many as have WINDOW_BYTES (clipjax.data.order.Windowed), and the groups last used stay decoded, up to
    KEPT_BYTES. Memory is that, or two row groups where that is more, and one row group for each thread. Raises
    ManifestError for files that are missing or no Parquet, for columns that are not there, and for row groups above
    MAX_GROUP.
    """

    def __init__(self, config: SourceConfig):
        self.keys = config
        files = find_files(config, SUFFIXES)
        with ThreadPoolExecutor(OPENING_THREADS) as pool:
            described = list(pool.map(lambda file: _describe(file, config), files))
        self.files = [str(file) for file in files]
        # Of every row group: its file, its number in it, its first row in it.
        self.groups = np.array(
            [
                (file, group, first)
                for file, (rows, _, _, _) in enumerate(described)
                for group, first in enumerate(np.cumsum([0, *rows[:-1]])[: len(rows)])
            ],
            np.int64,
        ).reshape(-1, 3)
        self.starts = np.cumsum([0, *(count for rows, *_ in described for count in rows)])
        self.columns = [columns for _, columns, *_ in described]
        self.class_names = described[0][2]
        # By what the files say, so that it is the same on every machine.
        self.window = max(1, WINDOW_BYTES // max(1, *(largest for _, _, _, largest in described)))
        self.cache = _RowGroups()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        group, row = self.find(index)
        file, number, _ = self.groups[group].tolist()
        table = self.cache.get(group, self.files[file], number, self.columns[file])
        try:
            values = table.slice(row, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            raise RecordError("not UTF-8", str(error)) from error
        except Exception as error:  # of Arrow, for what its own writers would not write
            raise RecordError("unreadable record", f"{type(error).__name__}: {error}") from error
        image = values[self.keys.image_key]
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            raise RecordError("no image", f"column '{self.keys.image_key}' has no bytes; a path is not followed")
        label = _int(values.get(self.keys.label_key), self.keys.label_key)
        texts = fields.captions(values, self.keys.text_key)
        if not texts and 0 <= label < len(self.class_names):
            texts = [self.class_names[label]]
        if not texts:
            raise RecordError("no caption", f"column(s) '{self.keys.text_key}' have no text")
        path, position = self.where(index)
        key, pair_id = f"{Path(path).name}/{position}", _int(values.get(PAIR_ID), PAIR_ID)
        return {"image": image, "texts": texts, "key": key, "label": label, "pair_id": pair_id}

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


class _RowGroups:
    """The row groups last used, decoded. Thread-safe: a group is decoded by one thread, others wait for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tables: collections.OrderedDict[int, pyarrow.Table] = collections.OrderedDict()
        self.decoding: dict[int, threading.Lock] = {}

    def get(self, group: int, path: str, number: int, columns: Sequence[str]) -> pyarrow.Table:
        """Raises RecordError where it cannot be read; it is then tried again for the next record."""
        with self.lock:
            if group in self.tables:
                self.tables.move_to_end(group)
                return self.tables[group]
            turn = self.decoding.setdefault(group, threading.Lock())
        with turn:
            with self.lock:
                if group in self.tables:
                    return self.tables[group]
            table = _read_group(path, number, columns)
            with self.lock:
                self.tables[group] = table
                while len(self.tables) > 2 and sum(t.nbytes for t in self.tables.values()) > KEPT_BYTES:
                    self.tables.popitem(last=False)
                self.decoding.pop(group, None)
        return table

    def __reduce__(self) -> tuple:
        return _RowGroups, ()


def _read_group(path: str, number: int, columns: Sequence[str]) -> pyarrow.Table:
    pq = _import_parquet()
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            # Threads are the pipeline's own.
            return file.read_row_group(number, columns=list(columns), use_threads=False)
    except Exception as error:  # Arrow raises OSError, ArrowInvalid and others for damaged pages
        raise RecordError("unreadable record", f"{path} row group {number}: {error}") from error


def _describe(path: Path, config: SourceConfig) -> tuple[list[int], list[str], tuple[str, ...], int]:
    """(rows of each row group, columns to read, class names, bytes of the largest row group). Raises ManifestError."""
    pq = _import_parquet()
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except Exception as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    names = _class_names(schema, config.label_key)
    texts = [key.strip().split("/")[0] for key in config.text_key.split(",")]
    for key, column in (("image_key", config.image_key), *(("text_key", column) for column in texts)):
        if column not in schema.names and not (key == "text_key" and names):
            known = ", ".join(f"'{name}'" for name in schema.names)
            hint = nearest(column, schema.names).split(" Known")[0]
            raise ManifestError(f"{path} has no column '{column}'. It has {known}.{hint} Set the source's {key}.")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > MAX_GROUP:
        raise ManifestError(
            f"{path} has a row group of {largest} bytes, which would be decoded for each of its rows; the limit is "
            f"{MAX_GROUP}. Write it again with smaller row groups, or build records of it (docs/data_pipelines.md)."
        )
    wanted = {config.image_key, *texts, config.label_key, PAIR_ID}
    return [group.num_rows for group in groups], [name for name in schema.names if name in wanted], names, largest


def _class_names(schema: pyarrow.Schema, column: str) -> tuple[str, ...]:
    """Hugging Face's ClassLabel names of a column, kept in the schema's metadata; () where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _int(value: Any, name: str) -> int:
    """-1: none. A label that is no number is no label of ours; one that does not fit is an error."""
    if not isinstance(value, int):
        return -1
    if not -1 <= value < 2**31:
        raise RecordError("corrupt record", f"column '{name}' is {value}, not in -1 to 2^31 - 1")
    return int(value)


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ManifestError(f"Source 'parquet' cannot import pyarrow ({error}). Run: pip install pyarrow") from error
    return pyarrow.parquet
