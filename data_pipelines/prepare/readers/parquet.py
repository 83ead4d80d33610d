"""Parquet tables that contain the images, read with the functions of training's source, one row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.fields import missing_column, pick, texts_of
from clipjax.data.sources.parquet import SUFFIXES, image_bytes, open_file, stream_rows
from clipjax.data.sources.parquet_schema import check_image, check_text
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers.paths import input_files, short_names
from data_pipelines.prepare.types import Example, Listing, Note, Unit


def units(options: Options) -> Listing:
    """A unit is a row group. Raises ManifestError for a file that is not Parquet, PipelineError for missing columns."""
    files = input_files(options, SUFFIXES)
    listing: list[Unit] = []
    for file, name in zip(files, short_names(files), strict=True):
        with open_file(file) as table:
            schema = table.schema_arrow
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        try:
            check_image(file, schema, options.image_column, "--image_column")
            for column in options.caption_columns:
                check_text(file, schema, column, "--caption_columns")
        except ManifestError as error:
            raise PipelineError(str(error)) from error
        for flag, column in (("--key_column", options.key_column), ("--label_column", options.label_column)):
            if column and column not in schema.names:
                raise PipelineError(missing_column(file, column, schema.names, flag))
        first = 0
        for group, count in enumerate(counts):
            payload = (name.removesuffix(SUFFIXES[0]), group, first)
            listing.append(Unit(len(listing), f"{file} row group {group}", "parquet", (file,), payload))
            first += count
    return Listing(listing)


def read(unit: Unit, options: Options, note: Note) -> Iterator[Example]:
    """Keys are those of --key_column, or the file's name and the row's number."""
    name, group, first = unit.payload
    try:
        for number, row in enumerate(stream_rows(unit.files[0], group, _columns(options)), first):
            key = str(row[options.key_column]) if options.key_column else f"{name}/{number:08d}"
            yield from _example(key, row, options, note)
    except RecordError as error:
        raise PipelineError(f"{error}.") from error


def _example(key: str, row: dict[str, Any], options: Options, note: Note) -> Iterator[Example]:
    """None or one."""
    value = row[options.image_column]
    image = image_bytes(value)
    if image is None:
        note("no image", key, type(value.get("bytes") if isinstance(value, dict) else value).__name__)
        return
    try:
        texts = [text for column in options.caption_columns for text in texts_of(pick(row, column))]
    except RecordError as error:
        note("caption is not UTF-8", key, str(error))
        return
    label = row[options.label_column] if options.label_column else ""
    yield Example(key, image, tuple(dict.fromkeys(texts)), label if isinstance(label, str) else "")


def _columns(options: Options) -> list[str]:
    """What is read. "meta/text" is the name of a column, or a field of the column "meta"; Arrow ignores the other."""
    outer = [name.split("/")[0] for name in options.caption_columns]
    names = (options.image_column, *options.caption_columns, *outer, options.key_column, options.label_column)
    return list(dict.fromkeys(name for name in names if name))
