"""The manifest of a folder of records: what says that the folder is finished, and what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.json_files import read_json
from clipjax.storage import AnyPath, as_path

FORMAT = "clipjax-records/1"
MANIFEST = "manifest.json"
SCHEMA = {  # of a record, a msgpack map
    "image": "bytes: a JPEG, PNG or WebP file",
    "texts": "list of str: captions, at least one",
    "key": "str: unique in the data set",
    "label": "int: index into class_names, where there are any; may be absent",
    "pair_id": "int: equal for captions that mean the same; may be absent",
}


class ManifestError(ValueError):
    """Data that is missing, unfinished, damaged or not what was asked for."""


def read_manifest(folder: str | AnyPath) -> dict[str, Any]:
    """The manifest of a finished folder. Raises ManifestError saying what is wrong with the folder."""
    path = as_path(folder) / MANIFEST
    if not path.is_file():
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


def to_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as its file has it."""
    return json.dumps(manifest, indent=1, ensure_ascii=False)


def as_read(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source as a manifest that was read has it."""
    return json.loads(json.dumps(source))


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
