"""Records in ArrayRecord shards, in a folder that clipjax.data.write.write_records made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from clipjax.config import SourceConfig, nearest
from clipjax.data.labels import ClassNames
from clipjax.data.records import ManifestError, RecordError, decode_record, read_manifest
from clipjax.data.sources.bucket_files import bucket_files
from clipjax.storage import as_path


class ArrayRecordSource:
    """The split config.split of the folder config.path.

    Its reader needs local files: of a folder in a bucket, each shard is copied into the cache when a record of it is
    first read. Raises ManifestError where the manifest, the split or a shard is missing, where a shard has another size
    than the manifest says, and where the shards do not fit into the cache.
    """

    def __init__(self, config: SourceConfig):
        manifest = read_manifest(config.path)
        if config.split not in manifest["splits"]:
            raise ManifestError(
                f"{config.path} has no split '{config.split}'.{nearest(config.split, manifest['splits'])}"
            )
        shards = manifest["splits"][config.split]["shards"]
        self.manifest_sha256 = hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()
        self.files = [str(as_path(config.path) / shard["file"]) for shard in shards]
        self.bucket = bucket_files(self.files, config.path, whole=True) if shards else None
        for path, shard in zip(self.files, shards, strict=True):
            if self.bucket:
                size = self.bucket.blobs[path].size
            else:
                size = Path(path).stat().st_size if Path(path).is_file() else "no file"
            if size != shard["bytes"]:
                raise ManifestError(
                    f"Shard {path}: expected {shard['bytes']} bytes by the manifest, found {size}. "
                    "Copy it again, or build the folder again with --overwrite."
                )
        self.checksums = [shard.get("sha256", "") for shard in shards]
        self.counts = [shard["records"] for shard in shards]
        self.starts = np.cumsum([0, *self.counts])
        self.size = sum(self.counts)
        self.class_names = tuple(manifest["class_names"])
        self.names = ClassNames(self.class_names, f"the manifest of {config.path}")
        # With the range of records in its name, a file is opened when it is first read, not here.
        local = [self.bucket.local_path(path) for path in self.files] if self.bucket else self.files
        ranges = [f"{path}[0:{count}]" for path, count in zip(local, self.counts, strict=True)]
        self.reader = ArrayRecordDataSource(ranges) if ranges else None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        try:
            data = self.read(index)
        except RecordError:
            raise
        except (ValueError, RuntimeError) as error:
            raise RecordError("unreadable record", str(error)) from error
        record = decode_record(data)
        self.names.number(record["label"], f"label of '{record['key']}'")
        return record

    def read(self, index: int) -> bytes:
        """A record as it is stored. Raises as ArrayRecord's reader does, RecordError for a shard that has changed."""
        if self.bucket:
            self.bucket.copy([self.where(index)[0]])
        return self.reader[index]

    def where(self, index: int) -> tuple[str, int]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.files[shard], index - int(self.starts[shard])

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Copies the shards of these records from a bucket at the same time."""
        if self.bucket:
            self.bucket.copy({self.where(index)[0]: None for index in indices})

    def sha256(self) -> str:
        """Of the manifest's entries for the shards, which hold the checksum of each."""
        return self.manifest_sha256

    def damaged_files(self) -> list[str]:
        """The shards whose SHA-256 differs from the manifest's. Reads all bytes of the shards that have one."""
        damaged = []
        for path, expected in zip(self.files, self.checksums, strict=True):
            if not expected:
                continue
            if self.bucket:
                self.bucket.copy([path])
            with open(self.bucket.local_path(path) if self.bucket else path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    damaged.append(path)
        return damaged
