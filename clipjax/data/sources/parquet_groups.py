"""Row groups of Parquet files, decoded within bounds: a dictionary of one large value makes a megabyte a terabyte."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.bucket_files import BucketFiles
from clipjax.storage import StorageError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MOST_DECODED = 512 << 20  # bytes of a decoded row group, unless the file declares more
LOOKED_AT = 1024  # rows at a time until one has a value
WINDOW_BYTES = 128 << 20  # of row groups whose rows are shuffled together
KEPT_BYTES = 2 * WINDOW_BYTES  # of decoded row groups in each process; at the end of a window the next one begins
ROWS_AT_A_TIME = 256  # decoded by stream_rows


class RowGroups:
    """The row groups last used, decoded. Thread-safe: one thread decodes a group while others wait for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tables: collections.OrderedDict[int, pyarrow.Table] = collections.OrderedDict()
        self.decoding: dict[int, threading.Lock] = {}

    def get(
        self, group: int, path: str, number: int, columns: Sequence[str], bucket: BucketFiles | None = None
    ) -> pyarrow.Table:
        """Raises RecordError for a group that cannot be read; the next record of it tries again."""
        with self.lock:
            if group in self.tables:
                self.tables.move_to_end(group)
                return self.tables[group]
            turn = self.decoding.setdefault(group, threading.Lock())
        with turn:
            with self.lock:
                if group in self.tables:
                    return self.tables[group]
            table = read_file_group(path, number, columns, bucket)
            with self.lock:
                self.tables[group] = table
                while len(self.tables) > 2 and sum(t.nbytes for t in self.tables.values()) > KEPT_BYTES:
                    self.tables.popitem(last=False)
                self.decoding.pop(group, None)
        return table

    def __reduce__(self) -> tuple:
        return RowGroups, ()


@contextmanager
def open_file(path: str | Path, bucket: BucketFiles | None = None) -> Iterator[pyarrow.parquet.ParquetFile]:
    """An open file; page checksums, where it has them, are verified. bucket: reads the file, if it is in a bucket.

    Raises ManifestError for what is not Parquet; StorageError, also in the block, for a bucket that does not answer.
    """
    pq = _import_parquet()
    stream = bucket.stream(str(path)) if bucket else None
    try:
        # Of a bucket, all columns of a row group are asked for at once.
        file = pq.ParquetFile(stream or path, page_checksum_verification=True, pre_buffer=bucket is not None)
    except Exception as error:  # Arrow raises OSError, ArrowInvalid and others
        if stream and stream.error:
            raise stream.error from error
        raise ManifestError(f"{path} cannot be read as Parquet: {error}") from error
    with file:
        try:
            yield file
        except Exception as error:
            if stream and stream.error:  # Arrow may have made another kind of it
                raise stream.error from error
            raise


def stream_rows(path: str | Path, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one row group, in order; decodes ROWS_AT_A_TIME. Raises RecordError at the first damaged page."""
    try:
        with open_file(path) as file:
            rows = min(ROWS_AT_A_TIME, rows_at_a_time(path, file, group, columns))
            for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns)):
                yield from batch.to_pylist()
    except Exception as error:
        raise RecordError("unreadable record", f"{path} row group {group}: {error}") from error


def read_file_group(path: str, number: int, columns: Sequence[str], bucket: BucketFiles | None = None) -> pyarrow.Table:
    """The columns of a row group of a file. Raises RecordError as read_group does and for damage; StorageError."""
    try:
        with open_file(path, bucket) as file:
            # Without Arrow's threads: the pipeline has its own.
            return read_group(path, file, number, columns, bucket)
    except (RecordError, StorageError):
        raise
    except Exception as error:  # Arrow raises OSError, ArrowInvalid and others for damaged pages
        raise RecordError("unreadable record", f"{path} row group {number}: {error}") from error


def read_group(
    path: str | Path,
    file: pyarrow.parquet.ParquetFile,
    number: int,
    columns: Sequence[str],
    bucket: BucketFiles | None = None,
) -> pyarrow.Table:
    """The columns of a row group of an open file, decoded without Arrow's threads.

    Raises RecordError for rows that repeat large values until they take more than MOST_DECODED and more than twice the
    bytes that the file declares; those that are decoded before this is known take at most MOST_DECODED more.
    """
    import pyarrow

    group = file.metadata.row_group(number)
    rows = rows_at_a_time(path, file, number, columns, bucket)
    if rows >= group.num_rows:
        return file.read_row_group(number, columns=list(columns), use_threads=False)
    limit, size, batches = max(MOST_DECODED, 2 * group.total_byte_size), 0, []
    for batch in file.iter_batches(rows, row_groups=[number], columns=list(columns), use_threads=False):
        batches.append(batch)
        size += batch.nbytes
        if size > limit:
            raise RecordError(
                "row group too large",
                f"{path} row group {number}: its rows repeat large values and decode to more than {limit} bytes; "
                f"the file declares {group.total_byte_size}. Write it again with smaller row groups.",
            )
    return pyarrow.Table.from_batches(batches)


def rows_at_a_time(
    path: str | Path,
    file: pyarrow.parquet.ParquetFile,
    number: int,
    columns: Sequence[str],
    bucket: BucketFiles | None = None,
) -> int:
    """How many rows of a row group decode to at most MOST_DECODED, by the largest value of the columns' dictionaries.

    A value that is no part of a dictionary takes its own bytes in the file, and cannot be repeated.
    """
    group = file.metadata.row_group(number)
    leaves = [(index, file.schema.column(index)) for index in range(group.num_columns)]
    wanted = [
        (index, leaf.path)
        for index, leaf in leaves
        if leaf.path.split(".")[0] in columns and leaf.physical_type == "BYTE_ARRAY"
    ]
    if wanted:
        # Arrow says here which column's metadata is damaged; group.column would end the process.
        next(file.iter_batches(1, row_groups=[number], columns=[name for _, name in wanted], use_threads=False), None)
    largest = 0
    for index, name in wanted:
        if group.num_rows * group.column(index).total_uncompressed_size > MOST_DECODED:
            largest = max(largest, _longest(path, file, number, name, bucket))
    return max(1, MOST_DECODED // largest) if largest else max(1, group.num_rows)


def image_bytes(value: Any) -> bytes | None:
    """The encoded image of a column of bytes, or of Hugging Face's {bytes, path}; None where there is only a path."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def _longest(
    path: str | Path, file: pyarrow.parquet.ParquetFile, number: int, column: str, bucket: BucketFiles | None
) -> int:
    """Bytes of the longest value in the dictionary of a column; 0 if all rows are null."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    source = path if bucket is None else bucket.stream(str(path))
    with pq.ParquetFile(source, read_dictionary=[column], metadata=file.metadata) as coded:
        for batch in coded.iter_batches(LOOKED_AT, row_groups=[number], columns=[column], use_threads=False):
            array = batch.column(0)
            while not hasattr(array, "dictionary"):  # inside structs and lists
                array = array.field(0) if hasattr(array, "field") else array.values
            if len(array.dictionary):  # whole; empty as long as the rows are null
                return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    return 0


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ManifestError(f"Source 'parquet' cannot import pyarrow ({error}). Run: pip install pyarrow") from error
    return pyarrow.parquet
