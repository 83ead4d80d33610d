"""Folders of records, as these pipelines write them, and prepared TensorFlow datasets, by training's sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipjax.config import SourceConfig
from clipjax.data.labels import ClassNames, names_in, one_list_of_names
from clipjax.data.records import RecordError, read_manifest
from clipjax.data.sources import TfdsConfig, open_source
from clipjax.files import hidden
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers.paths import one_input
from data_pipelines.prepare.types import Example, Listing, Note, Unit

_AT_A_TIME = 2048


def units(options: Options) -> Listing:
    """A unit is a piece of one split. Class names and licences are the folder's."""
    folder = one_input(options)
    manifest = read_manifest(folder)
    files = tuple(
        str(folder / shard["file"]) for shard in manifest["splits"].get(options.split, {"shards": []})["shards"]
    )
    config = SourceConfig(path=str(folder), split=options.split)
    return Listing(_pieces(config, files), _class_names(config, options), manifest["licences"])


def tfds_units(options: Options) -> Listing:
    """A unit is a piece of one split of a dataset prepared with file_format="array_record"; nothing is downloaded."""
    config = TfdsConfig(
        path=options.input[0],
        split=options.split,
        data_dir=options.data_dir,
        image_key=options.image_column,
        text_key=options.caption_columns[0],
        label_key=options.label_column or "label",
    )
    folder = Path(options.input[0])
    shards = folder.glob("*.array_record*") if folder.is_dir() else ()
    files = tuple(sorted(str(file) for file in shards if not hidden(file.name)))
    return Listing(_pieces(config, files), _class_names(config, options))


def _class_names(config: SourceConfig, options: Options) -> list[str]:
    """The source's names, or those of --class_names for a source whose labels have none. Raises ManifestError."""
    own = ClassNames(open_source(config).class_names, f"{config.path}")
    return list(one_list_of_names([own, *([names_in(options.class_names)] if options.class_names else [])]).names)


def read(unit: Unit, options: Options, note: Note) -> Iterator[Example]:
    config, start, stop = unit.payload
    source = open_source(config)
    for index in range(start, stop):
        try:
            record = source[index]
        except RecordError as error:
            note(error.cause, f"{Path(source.where(index)[0]).name} record {source.where(index)[1]}", str(error))
            continue
        label = record["label"] if record["label"] >= 0 else ""
        yield Example(record["key"], record["image"], tuple(record["texts"]), label)


def _pieces(config: SourceConfig, files: tuple[str, ...]) -> list[Unit]:
    size = len(open_source(config))
    ranges = [(start, min(start + _AT_A_TIME, size)) for start in range(0, size, _AT_A_TIME)]
    return [
        Unit(i, f"{config.path}:{config.split}[{start}:{stop}]", "records", files, (config, start, stop))
        for i, (start, stop) in enumerate(ranges)
    ]
