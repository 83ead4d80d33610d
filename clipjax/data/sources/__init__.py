"""Where examples come from: len(source) and source[i] -> {"image" bytes, "texts", "key", "label", "pair_id"}.

Add a source: one opening function, one row in SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from clipjax.config import SourceConfig, nearest, require
from clipjax.data.records import ManifestError
from clipjax.data.sources.array_record import ArrayRecordSource
from clipjax.data.sources.folder import FolderSource
from clipjax.data.sources.parquet import ParquetSource
from clipjax.data.sources.tfds import TfdsSource
from clipjax.data.sources.webdataset import WebDatasetSource


class Source(Protocol):
    """Random access to encoded examples. Instances can be pickled for worker processes."""

    class_names: tuple[str, ...]  # what labels index; empty when there are none

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises RecordError for a record that cannot be used, IndexError beyond the last one."""

    def where(self, index: int) -> tuple[str, int]:
        """File of a record and its position in that file, for messages."""


def open_source(config: SourceConfig) -> Source:
    """Raises ConfigError for an unknown name, ManifestError for data that is missing or damaged."""
    require(config.name in SOURCES, f"Source name '{config.name}' is unknown.{nearest(config.name, SOURCES)}")
    source = SOURCES[config.name](config)
    if not len(source):
        raise ManifestError(f"{config.path}, split '{config.split}', has no records.")
    return source


SOURCES: dict[str, Callable[[SourceConfig], Source]] = {
    "array_record": ArrayRecordSource,
    "folder": FolderSource,
    "parquet": ParquetSource,
    "tfds": TfdsSource,
    "webdataset": WebDatasetSource,
}
