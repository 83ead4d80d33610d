"""Parquet tables that contain the images, read with the functions of training's source, one row group at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipjax.data.labels import ClassNames, names_in, read_label
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.fields import missing_column
from clipjax.data.sources.parquet import SUFFIXES, ParquetConfig
from clipjax.data.sources.parquet_groups import image_bytes, open_file, stream_rows
from clipjax.data.sources.parquet_labels import LabelColumn, class_label_names, common_names, describe_labels
from clipjax.data.sources.parquet_schema import check_image, check_text
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers.captions import captions
from data_pipelines.prepare.readers.paths import input_files, short_names
from data_pipelines.prepare.types import Example, Listing, Note, Unit

_LABEL = ParquetConfig.label_key


def units(options: Options) -> Listing:
    """A unit is a row group. Raises ManifestError for a file that is not Parquet, PipelineError for missing columns."""
    files = input_files(options, SUFFIXES)
    labels: list[LabelColumn] = []
    listing: list[Unit] = []
    for file, name in zip(files, short_names(files), strict=True):
        with open_file(file) as table:
            schema = table.schema_arrow
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            for flag, column in (("--key_column", options.key_column), ("--label_column", options.label_column)):
                if column and column not in schema.names:
                    raise PipelineError(missing_column(file, column, schema.names, flag))
            labels.append(describe_labels(Path(file), table, options.label_column, "", "--label_column"))
        try:
            check_image(file, schema, options.image_column, "--image_column")
            for column in options.caption_columns:
                check_text(file, schema, column, "--caption_columns")
        except ManifestError as error:
            raise PipelineError(str(error)) from error
        first = 0
        for group, count in enumerate(counts):
            payload = (name.removesuffix(SUFFIXES[0]), group, first)
            listing.append(Unit(len(listing), f"{file} row group {group}", "parquet", (file,), payload))
            first += count
    if not options.label_column and _LABEL in schema.names:
        logging.warning("Column '%s' is not read; to keep labels, set --label_column=%s", _LABEL, _LABEL)
    if options.class_names:
        names = names_in(options.class_names)
    else:  # texts are their own names, which are known when all rows are read
        names = common_names([Path(file) for file in files], labels, lambda file: ())
    if names.path:
        listing = [unit._replace(files=(*unit.files, names.path)) for unit in listing]
    return Listing(listing, list(names.names))


def read(unit: Unit, options: Options, note: Note) -> Iterator[Example]:
    """Keys are those of --key_column, or the file's name and the row's number, also where that has none."""
    name, group, first = unit.payload
    file, *names_files = unit.files
    with open_file(file) as table:
        names = ClassNames(class_label_names(table.schema_arrow, options.label_column), f"the ClassLabel of {file}")
    names = names_in(names_files[0]) if names_files else names
    try:
        for number, row in enumerate(stream_rows(unit.files[0], group, _columns(options)), first):
            key = row[options.key_column] if options.key_column else None
            key = f"{name}/{number:08d}" if key in (None, "") else str(key)
            yield from _example(key, row, options, names, note)
    except RecordError as error:
        raise PipelineError(f"{error}.") from error


def _example(key: str, row: dict[str, Any], options: Options, names: ClassNames, note: Note) -> Iterator[Example]:
    """None or one."""
    value = row[options.image_column]
    image = image_bytes(value)
    if image is None:
        note("no image", key, type(value.get("bytes") if isinstance(value, dict) else value).__name__)
        return
    value, where = row[options.label_column] if options.label_column else None, f"label of '{key}'"
    try:
        texts = captions(row, key, options, note)
    except RecordError as error:
        note("caption is not UTF-8", key, str(error))
        return
    try:
        label = names.number(value, where) if names.names else read_label(value, where)
    except RecordError as error:
        note(error.cause, key, str(error))
        return
    yield Example(key, image, tuple(dict.fromkeys(texts)), "" if label in (None, -1) else label)


def _columns(options: Options) -> list[str]:
    """What is read. "meta/text" is the name of a column, or a field of the column "meta"; Arrow ignores the other."""
    outer = [name.split("/")[0] for name in options.caption_columns]
    names = (options.image_column, *options.caption_columns, *outer, options.key_column, options.label_column)
    return list(dict.fromkeys(name for name in names if name))
