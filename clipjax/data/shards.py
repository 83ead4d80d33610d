"""Writing the shards of a folder of records, by one process or by several that share storage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

Shard = dict[str, Any]  # {"file", "records", "bytes", "sha256"}, as in the manifest


def write_splits(
    folder: Path,
    splits: Mapping[str, Iterable[bytes]],
    records_per_shard: int,
    process_index: int,
    gather: Callable[[Any], list[Any]],
) -> tuple[dict[str, list[Shard]], list[dict[str, list[Shard]]], dict[str, Any]]:
    """Writes this process's shards. Returns ({split: its shards}, that of each process, {split: describe_split})."""
    own = {
        split: write_shards(folder, f"{split}-{process_index:05d}", records, records_per_shard)
        for split, records in splits.items()
    }
    written = gather(own)
    return own, written, {split: describe_split(split, [part[split] for part in written]) for split in splits}


def write_shards(folder: Path, prefix: str, records: Iterable[bytes], records_per_shard: int) -> list[Shard]:
    """Writes folder/PREFIX-00000, ...; final names come later, because they contain the number of shards."""
    shards, writer, path = [], None, None

    def close() -> None:
        writer.close()
        shards[-1]["bytes"] = path.stat().st_size
        with open(path, "rb") as file:
            shards[-1]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()

    for record in records:
        if writer is None or shards[-1]["records"] == records_per_shard:
            if writer is not None:
                close()
            path = folder / f"{prefix}-{len(shards):05d}"
            # group_size 1: each record can be read alone.
            writer = ArrayRecordWriter(str(path), "group_size:1")
            shards.append({"file": path.name, "records": 0})
        writer.write(record)
        shards[-1]["records"] += 1
    if writer is not None:
        close()
    return shards


def describe_split(split: str, parts: Sequence[list[Shard]]) -> dict[str, Any]:
    """The manifest's entry of a split, with all shards under their final names. parts: the shards of each process."""
    shards = [shard for part in parts for shard in part]
    named = [{**shard, "file": shard_name(split, index, len(shards))} for index, shard in enumerate(shards)]
    return {"records": sum(shard["records"] for shard in shards), "shards": named}


def find_missing(folder: Path, written: Sequence[Mapping[str, list[Shard]]]) -> list[str]:
    """Shards that are missing from the folder or have another size. written: {split: shards} of each process."""
    return [
        f"{shard['file']} of process {process}"
        for process, splits in enumerate(written)
        for shards in splits.values()
        for shard in shards
        if not (folder / shard["file"]).is_file() or (folder / shard["file"]).stat().st_size != shard["bytes"]
    ]


def name_shards(folder: Path, written: Sequence[Mapping[str, list[Shard]]], described: Mapping[str, Any]) -> None:
    """Gives each shard its final name. described: {split: its describe_split}."""
    for split, final in described.items():
        shards = [shard for splits in written for shard in splits[split]]
        for shard, named in zip(shards, final["shards"], strict=True):
            (folder / shard["file"]).rename(folder / named["file"])


def shard_name(split: str, index: int, count: int) -> str:
    return f"{split}-{index:05d}-of-{count:05d}.arrayrecord"
