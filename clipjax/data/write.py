"""write_records: a folder of shards and its manifest, on disk or in a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.data.bucket_records import write_to_bucket
from clipjax.data.record_folders import write_to_folder
from clipjax.data.records import FORMAT, SCHEMA, ManifestError, as_read
from clipjax.storage import as_path, is_remote


def write_records(
    folder: str | Path,
    splits: Mapping[str, Iterable[bytes]],
    *,
    name: str,
    records_per_shard: int = 4096,
    class_names: Sequence[str] = (),
    skipped: Mapping[str, int] | None = None,
    licences: Sequence[Mapping[str, str]] = (),
    source: Mapping[str, Any],
    overwrite: bool = False,
    process_index: int = 0,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
    say: Callable[[str], None] = logging.info,
) -> dict[str, Any]:
    """Writes a folder of shards and its manifest, completely or not at all; returns the manifest.

    splits: encoded records per split, consumed one by one; one shard is in memory at a time.
    skipped: cause -> count; read after all records have been consumed, so that a generator may fill it.
    source: what made the records (arguments, seed, versions). A finished folder with an equal source is left as it is,
      and its manifest returned; another source raises ManifestError unless overwrite is set.
    overwrite: replace a folder of records. A folder of anything else raises ManifestError nevertheless.
    process_index, gather: several processes may write one folder together, on storage that all of them see. gather
      turns a value of each process into the list of all (clipjax.processes.gather_json). A split is the records of
      process 0, then those of process 1, and so on. The files equal those of a single process if every process has a
      multiple of records_per_shard, except the last one with records. `skipped` is process 0's. Raises ManifestError
      where a process does not see what another has written.
    say: called by process 0 with a line that says that a finished folder is left as it is.

    A folder in a bucket is written on this machine and then uploaded; processes need not see each other's files.
    Removes what killed writers of the same folder have left beside it.
    """
    folder = as_path(folder)
    if isinstance(class_names, str) or not all(split and "/" not in split for split in splits):
        what = f"class_names={class_names[:40]!r}" if isinstance(class_names, str) else f"splits named {list(splits)}"
        raise ManifestError(f"{folder} cannot have {what}: names are a list, and files are named after splits.")

    def manifest_of(described: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "name": name,
            "splits": described,
            "class_names": list(class_names),
            "skipped": dict(sorted((skipped or {}).items())),
            "licences": [dict(licence) for licence in licences],
            "source": as_read(source),
        }

    return (write_to_bucket if is_remote(folder) else write_to_folder)(
        folder,
        splits,
        records_per_shard=records_per_shard,
        manifest_of=manifest_of,
        source=source,
        overwrite=overwrite,
        process_index=process_index,
        gather=gather,
        say=say,
    )
