"""Writes the shards, each with a note of its content by which a re-run recognises it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from clipjax.data.labels import ClassNames
from clipjax.data.records import encode_record
from clipjax.data.shards import shard_name
from clipjax.files import replacing, write_text
from data_pipelines.files import file_sha256
from data_pipelines.prepare.staging import read_images
from data_pipelines.prepare.steps.shards import order
from data_pipelines.prepare.types import Row


def write_shard(folder: Path, split: str, shard: int, count: int, rows: list[Row], class_names: list[str]) -> dict:
    """{"split", "file", "records", "bytes", "sha256"} of folder/shards/SPLIT-0000i-of-0000n.arrayrecord.

    Rows are written in the order of their keys' hashes. An existing, undamaged file of the same rows is kept.
    """
    rows = sorted(rows, key=order)
    made_of = [(row.key, row.texts, row.label, row.image_sha) for row in rows]
    fingerprint = hashlib.sha256(repr((made_of, class_names)).encode()).hexdigest()
    path = folder / "shards" / shard_name(split, shard, count)
    described = folder / "made_of" / f"{path.name}.json"
    finished = _find_finished(path, described, fingerprint)
    if finished:
        return finished
    names = ClassNames(tuple(class_names), "the class names")
    images = _images(folder / "units", rows)
    with replacing(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for row, image in zip(rows, images, strict=True):
            writer.write(
                encode_record(
                    image,
                    row.texts,
                    key=row.key,
                    label=None if row.label == "" else names.number(row.label, f"label of '{row.key}'"),
                    pair_id=pair_id(row.texts[0]),
                )
            )
        writer.close()
    result = {"split": split, "file": path.name, "records": len(rows), "bytes": path.stat().st_size}
    result |= {"sha256": file_sha256(path)}
    write_text(described, json.dumps({"fingerprint": fingerprint, "result": result}))
    return result


def pair_id(text: str) -> int:
    """A hash of 31 bits, equal for captions that differ in case only.

    Among a million different captions a few hundred share theirs.
    """
    return int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:4]) >> 1


def _images(folder: Path, rows: list[Row]) -> list[bytes]:
    by_unit: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_unit[row.unit].append(place)
    images = [b""] * len(rows)
    for unit, places in by_unit.items():
        read = read_images(folder, unit, [rows[place].position for place in places])
        for place, image in zip(places, read, strict=True):
            images[place] = image
    return images


def _find_finished(path: Path, described: Path, fingerprint: str) -> dict | None:
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        whole = content["fingerprint"] == fingerprint and content["result"]["sha256"] == file_sha256(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content["result"] if whole else None
