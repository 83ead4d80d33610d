"""Parquet tables with the images in them: bytes, or the {bytes, path} of Hugging Face's datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers.paths import input_files, short_names
from data_pipelines.prepare.types import Example, Listing, Note, Unit

_ROWS = 256  # decoded at a time


def units(options: Options) -> Listing:
    """A unit a row group. Raises PipelineError for what is no Parquet file and for a column that is not there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = input_files(options, (".parquet",))
    listing: list[Unit] = []
    for file, name in zip(files, short_names(files), strict=True):
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise PipelineError(f"{file} is no Parquet file: {error}.") from error
        for column in _columns(options):
            if column not in table.schema_arrow.names:
                raise PipelineError(
                    f"{file} has no column '{column}'. It has {', '.join(table.schema_arrow.names)}. Set "
                    "--image_column, --caption_columns, --key_column or --label_column."
                )
        first = 0
        for group in range(table.num_row_groups):
            payload = (name.removesuffix(".parquet"), group, first)
            listing.append(Unit(len(listing), f"{file} row group {group}", "parquet", (file,), payload))
            first += table.metadata.row_group(group).num_rows
    return Listing(listing)


def read(unit: Unit, options: Options, note: Note) -> Iterator[Example]:
    """Keys are --key_column's, or the file's name and the row's number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, group, number = unit.payload
    try:
        with pq.ParquetFile(unit.files[0]) as table:
            for batch in table.iter_batches(_ROWS, row_groups=[group], columns=_columns(options)):
                for row in batch.to_pylist():
                    key = f"{name}/{number:08d}"
                    if options.key_column:
                        key = str(row[options.key_column])
                    number += 1
                    yield from _example(key, row, options, note)
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{unit.name} is damaged: {error}.") from error


def _example(key: str, row: dict[str, Any], options: Options, note: Note) -> Iterator[Example]:
    image = row[options.image_column]
    image = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(image, bytes):
        note("no image", key, type(image).__name__)
        return
    texts: list[str] = []
    for column in options.caption_columns:
        value = row[column]
        texts += [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    label = row[options.label_column] if options.label_column else ""
    yield Example(key, image, tuple(dict.fromkeys(texts)), label if isinstance(label, str) else "")


def _columns(options: Options) -> list[str]:
    names = (options.image_column, *options.caption_columns, options.key_column, options.label_column)
    return list(dict.fromkeys(name for name in names if name))
