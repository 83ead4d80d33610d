"""Where examples come from. Each kind of source is one file with its options, its reader, and one row in SOURCES.

    source = open_source(ParquetConfig(path="data/*.parquet", text_key="caption"))
    len(source), source[0]     # {"image": bytes, "texts": [str, ...], "key": str, "label": int, "pair_id": int}

docs/data.md says what each kind reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from clipjax.config import Part, SourceConfig, nearest, require
from clipjax.data.records import ManifestError
from clipjax.data.sources.array_record import ArrayRecordSource
from clipjax.data.sources.folder import FolderConfig, FolderSource
from clipjax.data.sources.hard_negatives import HardNegativesConfig, HardNegativesSource
from clipjax.data.sources.held_out import HeldOutConfig, HeldOutSource
from clipjax.data.sources.multilingual import MultilingualConfig, MultilingualSource
from clipjax.data.sources.parquet import ParquetConfig, ParquetSource
from clipjax.data.sources.prompted import PromptedSource
from clipjax.data.sources.tfds import TfdsConfig, TfdsSource
from clipjax.data.sources.webdataset import WebDatasetConfig, WebDatasetSource
from clipjax.storage import StorageError, as_path, is_remote

__all__ = [
    "SOURCES",
    "ArrayRecordSource",
    "FolderConfig",
    "FolderSource",
    "HardNegativesConfig",
    "HardNegativesSource",
    "HeldOutConfig",
    "HeldOutSource",
    "MultilingualConfig",
    "MultilingualSource",
    "ParquetConfig",
    "ParquetSource",
    "PromptedSource",
    "Source",
    "TfdsConfig",
    "TfdsSource",
    "WebDatasetConfig",
    "WebDatasetSource",
    "open_source",
]


class Source(Protocol):
    """Random access to encoded examples. Instances can be pickled for worker processes.

    Six methods are optional. `order(seed)` returns the order in which training reads the records, for sources where
    the full shuffle of clipjax.data.order.Shuffled would be slow. `damaged_files()` lists files that differ from their
    recorded checksums. `sha256()` returns a checksum of all records, if one is recorded. `read_files()` returns what
    records are read from, where the attribute `files` does not name it all. `captions(index)` returns a record's texts
    without reading its image. `fetch_ahead(indices)` reads records from a bucket at the same time, so
    that source[index] of each, which must follow, need not wait. Where the attribute `has_false_captions` is there and
    True, only the first text of a record is true, and training refuses the source.

    Two attributes are optional: `templates`, the prompts that come with the data, with {} or {c} for the class name;
    and `task`, what the data say that they are for: "classification", "retrieval" or "multilabel". Sources without them
    have no templates and no known task.
    """

    class_names: tuple[str, ...]  # what labels index; empty where labels are numbers without names, or there are none

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": bytes, "texts": [str, ...], "key": str, "label": int, "pair_id": int}; -1 means no label or id.

        Labels are read by the rule of clipjax.data.labels, and are below len(class_names) where there are names.
        Records with several classes have "targets", uint8 [C] of 0 and 1, and -1 as label.
        Raises RecordError for a record that cannot be used, IndexError beyond the last one.
        """

    def where(self, index: int) -> tuple[str, int]:
        """The file of a record and the record's position in that file, for messages."""


class LocalOnly:
    """Makes a source that reads local and mounted files only."""

    def __init__(self, make: Callable[[Any], Source]):
        self.make = make

    def __call__(self, config: SourceConfig) -> Source:
        for place in (config.path, getattr(config, "data_dir", "")):
            if is_remote(place):
                able = ", ".join(name for name, row in SOURCES.items() if not isinstance(row.make, LocalOnly))
                raise ManifestError(
                    f"Source '{config.name}' does not read from buckets, and {place} is in one. Those that do: {able}. "
                    "Copy the data to a local disk, or mount the bucket (docs/buckets.md)."
                )
        return self.make(config)


SOURCES: dict[str, Part] = {
    "array_record": Part(SourceConfig, ArrayRecordSource),
    "folder": Part(FolderConfig, LocalOnly(FolderSource)),
    "hard_negatives": Part(HardNegativesConfig, LocalOnly(HardNegativesSource)),
    "held_out": Part(HeldOutConfig, lambda config: HeldOutSource(config, open_source)),
    "multilingual": Part(MultilingualConfig, LocalOnly(MultilingualSource)),
    "parquet": Part(ParquetConfig, ParquetSource),
    "tfds": Part(TfdsConfig, LocalOnly(TfdsSource)),
    "webdataset": Part(WebDatasetConfig, WebDatasetSource),
}


def _check_places(config: SourceConfig) -> None:
    """Raises ManifestError for places of a scheme that nothing reads, and where the library for one is missing."""
    for place in (config.path, getattr(config, "data_dir", "")):
        try:
            if place.startswith("pipe:"):
                raise StorageError(f"'{place}' is a command, not files: records are read in a random order.")
            as_path(place)
        except StorageError as error:
            raise ManifestError(str(error)) from error


def open_source(config: SourceConfig) -> Source:
    """Opens the source that config.name selects; with config.prompts, as a PromptedSource.

    Raises ConfigError for an unknown name, the options of another kind or an empty path, ManifestError for data that is
    missing or damaged.
    """
    require(config.name in SOURCES, f"Source name '{config.name}' is unknown.{nearest(config.name, SOURCES)}")
    row = SOURCES[config.name]
    require(
        isinstance(config, row.config),
        f"Source '{config.name}' needs a {row.config.__name__}, but got a {type(config).__name__}.",
    )
    require(bool(config.path), f"Source '{config.name}' needs a path; its path is empty.")
    _check_places(config)
    source = row(config)
    if not len(source):
        raise ManifestError(f"{config.path}, split '{config.split}', has no records.")
    return PromptedSource(source, config) if config.prompts else source
