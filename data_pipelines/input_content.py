"""Digests of input files, by which a repeated command tells whether its input has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from clipjax.data.records import ManifestError, read_manifest
from clipjax.storage import AnyPath
from data_pipelines.files import file_sha256, thread_map

CONTENT, TIMES = "files_sha256", "file_times_sha256"  # fields of a manifest's source
# Bytes of input beyond which only TIMES decide: one machine would read it all before the work begins.
LARGEST_READ = 64 << 30


def content_fields(out: AnyPath, files: Iterable[tuple[str, Path]], overwrite: bool) -> dict[str, str]:
    """{CONTENT: digest of names and bytes, TIMES: digest of names, sizes and modification times}, for the source.

    out: the folder of records. files: (name that does not depend on the folder, path). Files that cannot be read are
    noted as such.

    Bytes decide, so that copied or touched files count as equal. They are not read where a finished folder has the
    same TIMES, and not of more than LARGEST_READ bytes: TIMES decide there. {} for a folder with records of an
    earlier version, which did not look at bytes: it stays as it is.
    """
    files = list(files)
    try:
        manifest = read_manifest(out)
    except ManifestError:  # nothing there yet, or something that the writer refuses
        manifest = {"source": {}, "splits": {}}
    before = manifest["source"]
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    if TIMES not in before and any(shard["records"] for shard in shards) and not overwrite:
        return {}
    states = [(name, *file_state(path)) for name, path in files]
    times = _digest(states)
    if before.get(TIMES) == times:
        return {name: before[name] for name in (CONTENT, TIMES) if name in before}
    if sum(size for _, size, _ in states) > LARGEST_READ:
        return {TIMES: times}
    names = [name for name, _ in files]
    content = _digest(zip(names, thread_map(_sha256, [path for _, path in files]), strict=True))
    same = before.get(CONTENT) == content and not overwrite  # then the source is that of the folder, which stays
    return {CONTENT: content, TIMES: before[TIMES] if same else times}


def file_state(path: str | Path) -> tuple[int, int]:
    """(size, modification time in nanoseconds); (-1, -1) for a file that is not there, or cannot be asked."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return (-1, -1)
    return (state.st_size, state.st_mtime_ns)


def _digest(rows: Iterable[tuple]) -> str:
    result = hashlib.sha256()
    for row in rows:
        result.update(repr(row).encode("utf-8", "backslashreplace"))
    return result.hexdigest()


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except (OSError, ValueError):
        return "cannot be read"
