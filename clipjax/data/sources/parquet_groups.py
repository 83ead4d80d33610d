"""Row groups of Parquet files, decoded within bounds: a dictionary of one large value makes a megabyte a terabyte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipjax.data.records import RecordError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MOST_DECODED = 512 << 20  # bytes of a decoded row group, unless the file declares more
LOOKED_AT = 1024  # rows at a time until one has a value


def read_group(
    path: str | Path, file: pyarrow.parquet.ParquetFile, number: int, columns: Sequence[str]
) -> pyarrow.Table:
    """The columns of a row group of an open file, decoded without Arrow's threads.

    Raises RecordError for rows that repeat large values until they take more than MOST_DECODED and more than twice the
    bytes that the file declares; those that are decoded before this is known take at most MOST_DECODED more.
    """
    import pyarrow

    group = file.metadata.row_group(number)
    rows = rows_at_a_time(path, file, number, columns)
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


def rows_at_a_time(path: str | Path, file: pyarrow.parquet.ParquetFile, number: int, columns: Sequence[str]) -> int:
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
            largest = max(largest, _longest(path, file, number, name))
    return max(1, MOST_DECODED // largest) if largest else max(1, group.num_rows)


def image_bytes(value: Any) -> bytes | None:
    """The encoded image of a column of bytes, or of Hugging Face's {bytes, path}; None where there is only a path."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def _longest(path: str | Path, file: pyarrow.parquet.ParquetFile, number: int, column: str) -> int:
    """Bytes of the longest value in the dictionary of a column; 0 if all rows are null."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, read_dictionary=[column], metadata=file.metadata) as coded:
        for batch in coded.iter_batches(LOOKED_AT, row_groups=[number], columns=[column], use_threads=False):
            array = batch.column(0)
            while not hasattr(array, "dictionary"):  # inside structs and lists
                array = array.field(0) if hasattr(array, "field") else array.values
            if len(array.dictionary):  # whole; empty as long as the rows are null
                return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    return 0
