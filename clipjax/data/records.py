"""The record on disk: one image with its captions as a msgpack map in ArrayRecord shards, beside a manifest.

    folder/train-00000-of-00004.arrayrecord   records: {"image", "texts", "key", "label"?, "pair_id"?}
           ...
           manifest.json                      counts, checksums, class names, licences, source; written last

docs/data.md describes both formats for people who write them with other tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
from absl import logging

from clipjax.config import differences
from clipjax.json_files import read_json
from clipjax.storage import as_path, is_remote
from clipjax.storage.ranges import refuse_missing_bucket

FORMAT = "clipjax-records/1"
MANIFEST = "manifest.json"
SCHEMA = {  # of a record, a msgpack map
    "image": "bytes: a JPEG, PNG or WebP file",
    "texts": "list of str: captions, at least one",
    "key": "str: unique in the data set",
    "label": "int: index into class_names, where there are any; may be absent",
    "pair_id": "int: equal for captions that mean the same; may be absent",
}
MAX_CAPTION = 1 << 20  # characters or bytes; a text tower reads a few hundred


class RecordError(ValueError):
    """A record that cannot be used. `cause` is a short name to count by; the message says which and why."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


class ManifestError(ValueError):
    """Data that is missing, unfinished, damaged or not what was asked for."""


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


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a finished folder. Raises ManifestError saying what is wrong with the folder."""
    path = as_path(folder) / MANIFEST
    if not path.is_file():
        if is_remote(path):
            refuse_missing_bucket(path)
        raise ManifestError(
            f"{path} does not exist: {folder} is not a finished folder of records. "
            "Build it first, for example with python -m data_pipelines.scenes --out=data/scenes; "
            "docs/data_pipelines.md has the commands."
        )
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON ({error}); build the folder again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        other = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ManifestError(f"{path} has format {other!r}, expected {FORMAT!r}; build the folder again.")
    if not _well_formed(manifest):
        raise ManifestError(
            f"{path} is incomplete: each of its splits needs a list 'shards' of "
            '{"file": name in this folder, "records": number, "bytes": number}, and class_names is a list of texts; '
            "see docs/data.md."
        )
    return {"class_names": [], "skipped": {}, "licences": [], "source": {}, **manifest}


def find_equal(
    folder: str | Path, source: Mapping[str, Any], overwrite: bool, say: Callable[[str], None] = logging.info
) -> dict[str, Any] | None:
    """The manifest of a folder of records if its source is equal; None if `overwrite` says that it is to be replaced.

    say: called with a line that says that the folder is left as it is.
    Raises ManifestError for a folder with another source, or of something else than records.
    """
    if not (as_path(folder) / MANIFEST).is_file():
        raise ManifestError(
            f"{folder} holds other files than records: it has no {MANIFEST}. Nothing was written or removed, and "
            "--overwrite replaces only folders of records. Choose another --out."
        )
    manifest = read_manifest(folder)
    if overwrite:
        return None
    if manifest["source"] != as_read(source):
        differing = differences(_flat(manifest["source"]), _flat(as_read(source)))
        lines = "".join(f"    {name}: {old!r} there, {new!r} now\n" for name, (old, new) in differing.items())
        raise ManifestError(
            f"{folder} holds records made with other settings or from other input:\n{lines}"
            "Choose another --out, or pass --overwrite."
        )
    say(f"{folder} was already made from this input and these arguments: left as it is.")
    return manifest


def to_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as its file has it."""
    return json.dumps(manifest, indent=1, ensure_ascii=False)


def as_read(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source as a manifest that was read has it."""
    return json.loads(json.dumps(source))


def _flat(source: Mapping[str, Any]) -> dict[str, Any]:
    """{"options.splits": ..., ...}: a source in which a part, such as prepare's options, has fields of its own."""
    result = {}
    for name, value in source.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        result |= {f"{name}.{field}": one for field, one in inner.items()} if inner else {name: value}
    return result


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


def _well_formed(manifest: dict[str, Any]) -> bool:
    names = manifest.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    try:
        shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
        sizes = [shard[name] for shard in shards for name in ("records", "bytes")]
        plain = all(Path(shard["file"]).name == shard["file"] for shard in shards)
        return plain and all(type(size) is int and 0 <= size < 2**48 for size in sizes)
    except (KeyError, TypeError, AttributeError):
        return False
