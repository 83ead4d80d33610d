"""Which paths are remote, and which are refused: local ones stay pathlib.Path."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Union

from clipjax.storage.connection import SCHEMES, require
from clipjax.storage.errors import StorageError

if TYPE_CHECKING:
    from etils import epath

AnyPath = Union[Path, "epath.Path"]


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an object or a folder in a bucket: it begins with gs:// or s3://."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """The path as an object: pathlib.Path for a local one, an etils.epath.Path for gs://bucket/x and s3://bucket/x.

    Both have / exists is_file is_dir iterdir glob read_text read_bytes name parent. A path that is one already comes
    back unchanged. Nothing is read or made. Raises StorageError for another scheme, for one that lost a slash, for no
    bucket, and where the extra that reads the scheme is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        _check_local(text)
        return path if isinstance(path, Path) else Path(text)
    scheme, rest = text.split("://", 1)
    bucket, *parts = rest.split("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9]", bucket):
        what = f": {bucket[:80]!r} is not a valid bucket name" if bucket else " names no bucket"
        raise StorageError(f"{text}{what}; expected {scheme}://BUCKET/FOLDER.", "path")
    if ".." in parts:
        raise StorageError(f"{text}: a path in a bucket has no '..'. Write it without.", "path")
    require(text)
    from clipjax.storage.remote_path import RemotePath

    return path if isinstance(path, RemotePath) else RemotePath(text)


def _check_local(text: str) -> None:
    """Raises StorageError for what would make a local folder called gs: or hdfs:."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(/+)", text)
    if match is None:
        return
    scheme, slashes = match.groups()
    known = scheme.lower() if scheme.lower() in SCHEMES else ""
    if not known and len(slashes) == 1:
        return  # a local folder may be called "a:"
    rest = text[match.end() :]
    if known:
        cure = f"write {known}://{rest}"
    elif scheme.lower() == "file":
        cure = f"write the path without it, /{rest}"
    elif scheme.lower() == "gcs":
        cure = f"write gs://{rest}"
    else:
        names = " and ".join(f"{name}:// ({row.service})" for name, row in SCHEMES.items())
        cure = f"clipjax reads and writes local paths, {names}; mount or copy the rest"
    raise StorageError(f"{text}: the scheme {scheme}:{slashes} is not supported; {cure}.", "path")
