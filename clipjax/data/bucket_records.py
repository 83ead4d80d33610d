"""Folders of records in a bucket: shards are written on this machine, then uploaded; the manifest goes last."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What clipjax.data.write.write_records does for a folder in a bucket. Returns the manifest.

    manifest_of: {split: described} -> the manifest. Each process needs room for its shards in the system's temporary
    folder (TMPDIR). A folder without a manifest whose upload was broken off is written again. With `overwrite`, the old
    records stay until the manifest names the new ones, which have other names: nothing is lost if the upload is broken
    off. Raises ManifestError, StorageError.
    """
    first = process_index == 0
    finished = _find_finished(folder, source, overwrite, say) if first else None
    if gather(finished is not None)[0]:
        return finished or read_manifest(folder)
    temporary = Path(tempfile.mkdtemp(prefix="clipjax-upload-"))
    try:
        with signals.tidying(lambda _: shutil.rmtree(temporary, ignore_errors=True)):
            own, written, described = write_splits(temporary, splits, records_per_shard, process_index, gather)
            taken = gather(_make_room(folder) if first else None)[0]
            _avoid_names(described, taken)
            for split, shards in own.items():
                before = sum(len(part[split]) for part in written[:process_index])
                for shard, named in zip(shards, described[split]["shards"][before:], strict=False):
                    storage.upload_file(temporary / shard["file"], folder / named["file"])
            gather("uploaded")
            if first:
                write_text(folder / MANIFEST, to_text(manifest_of(described)))
                _remove_all_but(folder, [MANIFEST, *(s["file"] for part in described.values() for s in part["shards"])])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    gather("published")
    return read_manifest(folder)


def _find_finished(
    folder: storage.AnyPath, source: Mapping[str, Any], overwrite: bool, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The manifest of a finished folder with an equal source; None where it must be written."""
    storage.check_writable(folder)
    if not (folder / MANIFEST).exists() and (not folder.exists() or (folder / storage.UPLOADING).exists()):
        return None
    return find_equal(folder, source, overwrite, say)


def _make_room(folder: storage.AnyPath) -> list[str]:
    """Empties an unfinished folder and marks it as one. Returns the names that finished records have taken."""
    if (folder / MANIFEST).exists():
        return [name.rsplit("/", 1)[-1] for name in _find(folder)]
    _remove_all_but(folder, [])
    storage.write_bytes(folder / storage.UPLOADING, b"")
    return []


def _avoid_names(described: Mapping[str, Any], taken: Sequence[str]) -> None:
    """Gives all shards a number more in their names if one of them is taken. described: {split: describe_split}."""
    shards = [shard for part in described.values() for shard in part["shards"]]
    plain = [os.path.splitext(shard["file"]) for shard in shards]
    for number in range(len(taken) + 1):
        names = [f"{stem}-{number}{suffix}" if number else stem + suffix for stem, suffix in plain]
        if not set(names) & set(taken):
            break
    for shard, name in zip(shards, names, strict=True):
        shard["file"] = name


def _remove_all_but(folder: storage.AnyPath, kept: Sequence[str]) -> None:
    """Removes the objects of a folder whose names are not in `kept`."""
    kept = frozenset(kept)
    with storage.translating(folder, writing=True):
        for name in _find(folder):
            if name.rsplit("/", 1)[-1] not in kept:
                storage.filesystem(folder).rm_file(name)


def _find(folder: storage.AnyPath) -> list[str]:
    with storage.translating(folder):
        return storage.filesystem(folder).find(os.fspath(folder)) if folder.exists() else []
