"""Folders of records in a bucket: shards are written on this machine, then uploaded; the manifest goes last."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clipjax import signals, storage
from clipjax.data.records import MANIFEST, find_equal, read_manifest, to_text
from clipjax.data.shards import write_splits
from clipjax.files import write_text


def write_to_bucket(
    folder: storage.AnyPath,
    splits: Mapping[str, Iterable[bytes]],
    *,
    records_per_shard: int,
    manifest_of: Callable[[Mapping[str, Any]], dict[str, Any]],
    source: Mapping[str, Any],
    overwrite: bool,
    process_index: int,
    gather: Callable[[Any], list[Any]],
) -> dict[str, Any]:
    """What clipjax.data.write.write_records does for a folder in a bucket. Returns the manifest.

    manifest_of: {split: described} -> the manifest. Each process needs room for its shards in the system's temporary
    folder (TMPDIR). A folder without a manifest whose upload was broken off is written again. With `overwrite`, the old
    records are removed when the new ones are about to be uploaded. Raises ManifestError, StorageError.
    """
    first = process_index == 0
    finished = _find_finished(folder, source, overwrite) if first else None
    if gather(finished is not None)[0]:
        return finished or read_manifest(folder)
    temporary = Path(tempfile.mkdtemp(prefix="clipjax-upload-"))
    try:
        with signals.tidying(lambda _: shutil.rmtree(temporary, ignore_errors=True)):
            own, written, described = write_splits(temporary, splits, records_per_shard, process_index, gather)
            if first:
                _clear(folder)
            gather("cleared")
            for split, shards in own.items():
                before = sum(len(part[split]) for part in written[:process_index])
                for shard, named in zip(shards, described[split]["shards"][before:], strict=False):
                    storage.upload_file(temporary / shard["file"], folder / named["file"])
            gather("uploaded")
            if first:
                write_text(folder / MANIFEST, to_text(manifest_of(described)))
                with storage.translating(folder):
                    storage.filesystem(folder).rm_file(os.fspath(folder / storage.UPLOADING))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    gather("published")
    return read_manifest(folder)


def _find_finished(folder: storage.AnyPath, source: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of a finished folder with an equal source; None where it must be written."""
    storage.check_writable(folder)
    if not (folder / MANIFEST).exists():
        if folder.exists() and not (folder / storage.UPLOADING).exists():
            read_manifest(folder)  # says that something else is there
        return None
    return find_equal(folder, source, overwrite)


def _clear(folder: storage.AnyPath) -> None:
    """Removes what is in the folder, the manifest first, and marks it as unfinished."""
    with storage.translating(folder, writing=True):
        system = storage.filesystem(folder)
        names = [os.fspath(folder / MANIFEST)] if (folder / MANIFEST).exists() else []
        names += system.find(os.fspath(folder)) if folder.exists() else []
        for name in dict.fromkeys(names):
            if system.exists(name):
                system.rm_file(name)
    storage.write_bytes(folder / storage.UPLOADING, b"")
