"""The record on disk: one image with its captions as a msgpack map in ArrayRecord shards, beside a manifest.

    folder/train-00000-of-00004.arrayrecord   records: {"image", "texts", "key", "label"?, "pair_id"?}
           ...
           manifest.json                      counts, checksums, class names, licences, source; written last

docs/data.md describes both formats for people who write them with other tools.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from clipjax.data.shards import describe_split, find_missing, name_shards, write_shards
from clipjax.files import write_text
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
ABANDONED = 24 * 3600  # seconds without a change after which another machine's unfinished folder is removed


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

    Removes what killed writers of the same folder have left beside it.
    """
    if is_remote(folder):
        raise ManifestError(
            f"{folder} is in a bucket. Records are written into a local or mounted folder; copy it to the bucket "
            "afterwards (docs/buckets.md)."
        )
    folder, first = Path(folder), process_index == 0
    if isinstance(class_names, str) or not all(split and "/" not in split for split in splits):
        what = f"class_names={class_names[:40]!r}" if isinstance(class_names, str) else f"splits named {list(splits)}"
        raise ManifestError(f"{folder} cannot have {what}: names are a list, and files are named after splits.")
    finished = find_finished(folder, source, overwrite) if first else None
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
        own = {
            split: write_shards(unfinished, f"{split}-{process_index:05d}", records, records_per_shard)
            for split, records in splits.items()
        }
        written = gather(own)
        described = {split: describe_split(split, [part[split] for part in written]) for split in splits}
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA,
            "name": name,
            "splits": described,
            "class_names": list(class_names),
            "skipped": dict(sorted((skipped or {}).items())),
            "licences": [dict(licence) for licence in licences],
            "source": _as_read(source),
        }
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


def find_finished(folder: Path, source: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of a finished folder with an equal source; None where it must be written. See write_records."""
    _remove_leftovers(folder)
    if folder.exists() and any(folder.iterdir()):
        manifest = read_manifest(folder)
        if not overwrite and manifest["source"] == _as_read(source):
            return manifest
        if not overwrite:
            raise ManifestError(
                f"{folder} holds records made with other settings: {manifest['source']}, now {_as_read(source)}. "
                "Choose another --out, or pass --overwrite."
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    return None


def publish(unfinished: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest into a folder of shards and renames it to `folder`, replacing records of that name."""
    write_text(unfinished / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
    replaced = _beside(folder, "replaced")
    if folder.exists():
        # Moved aside first, so that there is a complete copy on disk at every moment.
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _as_read(source: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(source))


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
