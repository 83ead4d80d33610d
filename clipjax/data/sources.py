"""Where examples come from: len(source) and source[i] -> {"image" bytes, "texts", "key", "label", "pair_id"}.

Add a source: one opening function, one row in SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from array_record.python.array_record_data_source import ArrayRecordDataSource

from clipjax.config import SourceConfig, nearest, require
from clipjax.data.folder_source import FolderSource
from clipjax.data.parquet_source import ParquetSource
from clipjax.data.records import ManifestError, RecordError, decode_record, read_manifest
from clipjax.data.tfds_source import TfdsSource
from clipjax.data.webdataset_source import WebDatasetSource


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


class ArrayRecordSource:
    """One split of a folder written by clipjax.data.records.write_records."""

    def __init__(self, config: SourceConfig):
        manifest = read_manifest(config.path)
        if config.split not in manifest["splits"]:
            raise ManifestError(
                f"{config.path} has no split '{config.split}'.{nearest(config.split, manifest['splits'])}"
            )
        shards = manifest["splits"][config.split]["shards"]
        self.files = [str(Path(config.path) / shard["file"]) for shard in shards]
        for path, shard in zip(self.files, shards, strict=True):
            found = Path(path).stat().st_size if Path(path).is_file() else "no file"
            if found != shard["bytes"]:
                raise ManifestError(
                    f"Shard {path}: expected {shard['bytes']} bytes by the manifest, found {found}. "
                    "Copy it again, or build the folder again with --overwrite."
                )
        self.counts = [shard["records"] for shard in shards]
        self.size = sum(self.counts)
        self.class_names = tuple(manifest["class_names"])
        # With the range of records in the name, a file is opened when first read, not here.
        ranges = [f"{path}[0:{count}]" for path, count in zip(self.files, self.counts, strict=True)]
        self.reader = ArrayRecordDataSource(ranges) if ranges else None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        try:
            data = self.reader[index]
        except (ValueError, RuntimeError) as error:
            raise RecordError("unreadable record", str(error)) from error
        return decode_record(data)

    def where(self, index: int) -> tuple[str, int]:
        for path, count in zip(self.files, self.counts, strict=True):
            if index < count:
                return path, index
            index -= count
        raise IndexError(index)


SOURCES: dict[str, Callable[[SourceConfig], Source]] = {
    "array_record": ArrayRecordSource,
    "folder": FolderSource,
    "parquet": ParquetSource,
    "tfds": TfdsSource,
    "webdataset": WebDatasetSource,
}
