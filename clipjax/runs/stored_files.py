"""The files of a checkpoint, in a folder or a bucket: their sizes, and checksums of what they hold.

A bucket computes an MD5 of every object that it receives whole, and returns it with the list of objects. Where it is
known, nothing has to be read to tell whether an object still holds what was written.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import PurePath
from typing import Any, NamedTuple

from clipjax import storage

PIECE = 32 << 20  # bytes of an object that are read at a time


class Stored(NamedTuple):
    """A file of a folder."""

    bytes: int
    md5: str = ""  # in hexadecimal, as its bucket computed it from what it received; "": not known


def stored_files(folder: Any) -> dict[str, Stored]:
    """{relative path: what is known without reading it} of all files in a folder, at any depth."""
    if not storage.is_remote(folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): Stored(path.stat().st_size) for path in paths}
    system, root = _opened(folder)
    with storage.translating(folder):
        found = {
            name.removeprefix(f"{root}/"): info
            for name, info in system.find(root, detail=True).items()
            if info["type"] == "file" and not name.endswith("/")
        }
        trusted = not str(folder).startswith("s3://") or _etags_are_md5(system, root, found)
    return {name: Stored(info["size"], _md5(info) if trusted else "") for name, info in found.items()}


def digest(path: Any, kind: str) -> str:
    """A file's "sha256" or "md5", in hexadecimal, by reading it."""
    if not storage.is_remote(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    system, name = _opened(path)
    made = hashlib.new(kind)
    with storage.translating(path):
        size = system.size(name)
        for start in range(0, size, PIECE):
            made.update(system.cat_file(name, start=start, end=min(start + PIECE, size)))
    return made.hexdigest()


def move_folder(folder: Any, target: Any) -> None:
    """Moves a folder to a path that is free. In a bucket, objects are copied, and then removed; none is downloaded."""
    if not storage.is_remote(folder):
        folder.rename(target)
        return
    system, root = _opened(folder)
    with storage.translating(folder, writing=True):
        names = list(system.find(root))
        for name in names:
            system.cp_file(name, _opened(target)[1] + name.removeprefix(root))
        system.rm(names)


def _opened(path: PurePath) -> tuple[Any, str]:
    """(the file system of a bucket, the name of the object there)."""
    return storage.filesystem(path), str(path).split("://", 1)[1].rstrip("/")


def _md5(info: dict[str, Any]) -> str:
    if info.get("md5Hash"):  # of Google Cloud Storage
        return base64.b64decode(info["md5Hash"]).hex()
    tag = str(info.get("ETag", "")).strip('"').lower()
    return tag if re.fullmatch("[0-9a-f]{32}", tag) else ""  # others are of uploads in parts


def _etags_are_md5(system: Any, root: str, found: dict[str, dict[str, Any]]) -> bool:
    """Whether S3's ETags are MD5s here, as they are without encryption by own keys. Looks at the smallest file."""
    known = {name: info for name, info in found.items() if _md5(info)}
    if not known:
        return False
    name = min(known, key=lambda name: known[name]["size"])
    return hashlib.md5(system.cat_file(f"{root}/{name}")).hexdigest() == _md5(known[name])
