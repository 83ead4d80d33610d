"""Folders of records on disk: written beside their place, and renamed when they are whole."""

from __future__ import annotations

import glob
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clipjax.data.records import MANIFEST, ManifestError, find_equal, read_manifest, to_text
from clipjax.data.shards import find_missing, name_shards, write_splits
from clipjax.files import write_text

ABANDONED = 24 * 3600  # seconds without a change after which another machine's unfinished folder is removed


def write_to_folder(
    folder: Path,
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
    """What clipjax.data.write.write_records does for a folder on disk. Returns the manifest.

    manifest_of: {split: described} -> the manifest.
    """
    folder = behind_link(folder)
    first = process_index == 0
    finished = find_finished(folder, source, overwrite, say) if first else None
    unfinished = _beside(folder, "unfinished")
    if first and not finished:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
    unfinished_name = gather("" if finished else unfinished.name)[0]
    if not unfinished_name:
        return finished or read_manifest(folder)
    unfinished = folder.with_name(unfinished_name)
    try:
        if not unfinished.is_dir():
            raise ManifestError(
                f"Process {process_index} on {socket.gethostname()} does not see {unfinished}, which process 0 made: "
                f"{folder} must be on storage that all processes see."
            )
        _, written, described = write_splits(unfinished, splits, records_per_shard, process_index, gather)
        manifest = manifest_of(described)
        if first:
            missing = find_missing(unfinished, written)
            if missing:
                raise ManifestError(
                    f"{len(missing)} shards that were written are not in {unfinished} as process 0 on "
                    f"{socket.gethostname()} sees it: {', '.join(missing[:5])}{', ...' if missing[5:] else ''}. "
                    f"Nothing was published. {folder} must be on storage that all processes see."
                )
            name_shards(unfinished, written, described)
            publish(unfinished, folder, manifest)
    finally:
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
    gather("published")
    return manifest


def behind_link(folder: Path) -> Path:
    """The folder to write: the one that a link leads to, so that the link stays and files are renamed on one disk."""
    return folder.resolve() if folder.is_symlink() else folder


def find_finished(
    folder: Path, source: Mapping[str, Any], overwrite: bool, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The manifest of a finished folder with an equal source; None where it must be written. See write_records."""
    _remove_leftovers(folder)
    if folder.exists() and any(folder.iterdir()):
        if equal := find_equal(folder, source, overwrite, say):
            return equal
    folder.parent.mkdir(parents=True, exist_ok=True)
    return None


def publish(unfinished: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest into a folder of shards and renames it to `folder`, replacing records of that name."""
    write_text(unfinished / MANIFEST, to_text(manifest))
    replaced = _beside(folder, "replaced")
    if folder.exists():
        # Moved aside first, so that there is a complete copy on disk at every moment.
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    """The path at which this process keeps the unfinished or the replaced version of a folder."""
    return folder.with_name(f".{folder.name}.{what}-{socket.gethostname()}-{os.getpid()}")


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed writers of this folder have left beside it.

    A replaced folder gets its name back if its writer was killed before the new one had it. Folders of writers that may
    still be at work, here or on another machine, are left alone.
    """
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*-*-*"):
        match = re.fullmatch(r"(unfinished|replaced)-(.+)-(\d+)", leftover.name.removeprefix(f".{folder.name}."))
        if not match or not leftover.is_dir() or leftover.is_symlink():
            continue
        what, host, pid = match.groups()
        ended = host == socket.gethostname() and not _alive(int(pid))
        newest = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
        if not ended and time.time() - newest < ABANDONED:
            continue
        if what == "replaced" and not folder.exists():
            leftover.rename(folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process, or no process number: leave it
        pass
    return True
