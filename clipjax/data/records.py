"""The record on disk: one image with its captions as a msgpack map in ArrayRecord shards, beside a manifest.

    folder/train-00000-of-00004.arrayrecord   records: {"image", "texts", "key", "label"?, "pair_id"?}
           ...
           manifest.json                      counts, checksums, class names, licences, source; written last

docs/data.md describes both formats for people who write them with other tools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from clipjax.data.bucket_records import write_to_bucket
from clipjax.data.manifest import FORMAT, MANIFEST, SCHEMA, ManifestError, as_read, read_manifest
from clipjax.data.record_folders import write_to_folder
from clipjax.storage import as_path, is_remote

__all__ = [
    "FORMAT",
    "MANIFEST",
    "MAX_CAPTION",
    "SCHEMA",
    "ManifestError",
    "RecordError",
    "decode_record",
    "encode_record",
    "read_manifest",
    "write_records",
]

MAX_CAPTION = 1 << 20  # characters or bytes; a text tower reads a few hundred


class RecordError(ValueError):
    """A record that cannot be used. `cause` is a short name to count by; the message says which and why."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


def encode_record(
    image: bytes, texts: str | Sequence[str], *, key: str, label: int | None = None, pair_id: int | None = None
) -> bytes:
    """image: an encoded JPEG, PNG or WebP file; texts: one caption, or several; key: unique in the data set.

    label: index into the manifest's class_names. pair_id: equal for records whose captions mean the same.
    Raises RecordError for a value of the wrong type, an id outside int32, and a text that is not Unicode.
    """
    record = {"image": image, "texts": [texts] if isinstance(texts, str) else list(texts), "key": key}
    record |= {} if label is None else {"label": _whole(label)}
    record |= {} if pair_id is None else {"pair_id": _whole(pair_id)}
    _check(record)
    try:
        return msgpack.packb(record)
    except UnicodeEncodeError as error:
        raise RecordError("not UTF-8", f"record {key!r}: {error}") from error


def decode_record(data: bytes) -> dict[str, Any]:
    """{"image": bytes, "texts": [str, ...], "key": str, "label": int (-1: none), "pair_id": int (-1: none)}.

    Raises RecordError for anything else.
    """
    try:
        record = msgpack.unpackb(data, max_bin_len=1 << 30)
    except Exception as error:  # msgpack raises many kinds for damaged input; a reader needs only one
        raise RecordError("corrupt record", f"not a msgpack map: {error}") from error
    if not isinstance(record, dict):
        raise RecordError("corrupt record", f"a msgpack {type(record).__name__}, expected a map")
    # Other tools may write an absent number as nil.
    record = {"label": -1, "pair_id": -1} | {name: value for name, value in record.items() if value is not None}
    record["label"] = _whole(record["label"])
    _check(record)
    return record


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
    )


def _check(record: dict[str, Any]) -> None:
    """Raises RecordError where a field is missing, has another type, or does not fit a batch's int32."""
    for name, kind in (("image", bytes), ("texts", list), ("key", str)):
        if not isinstance(record.get(name), kind):
            kinds = type(record.get(name)).__name__, kind.__name__
            raise RecordError("corrupt record", f"field '{name}' is {kinds[0]}, expected {kinds[1]}")
    texts = record["texts"]
    if not all(isinstance(text, str) for text in texts) or not any(map(str.strip, texts)):
        raise RecordError("no caption", f"record '{record['key']}' has no caption, or one that is not text")
    if (longest := max(map(len, texts))) > MAX_CAPTION:
        raise RecordError("caption too long", f"{longest} characters, the limit is {MAX_CAPTION}")
    for name in ("label", "pair_id"):
        value = record.get(name, -1)
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
            raise RecordError("corrupt record", f"field '{name}' is {value!r}, expected an integer from -1 to 2^31 - 1")


def _whole(value: Any) -> Any:
    """A whole number of any type as an int; other values as they are, for _check to refuse."""
    try:
        return int(value) if not isinstance(value, str | bytes | bool) and int(value) == value else value
    except (TypeError, ValueError, OverflowError):
        return value
