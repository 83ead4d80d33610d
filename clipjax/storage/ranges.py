"""Objects in buckets as data are read from them: which versions there are, and ranges of their bytes."""

from __future__ import annotations

import collections
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from absl import logging

from clipjax.storage.block_cache import Blob
from clipjax.storage.connection import shared_filesystem
from clipjax.storage.errors import StorageError, code_of, no_bucket, translating
from clipjax.storage.paths import is_remote

PATIENCE = 120.0  # seconds for which a server that fails or does not answer is asked again
LOOKED_UP = 16  # objects of one folder that are asked for one by one; of more, the folder is listed
ASKING = 16  # requests at a time


class ObjectChanged(Exception):
    """An object is no longer the version that was read before, or is gone; the message names it."""


def blobs_of(urls: Sequence[str]) -> list[Blob]:
    """Each object's size and version, by lists of their folders. Raises FileNotFoundError, StorageError."""
    of_folder: dict[str, list[str]] = collections.defaultdict(list)
    for url in urls:
        of_folder[url.rpartition("/")[0]].append(url)
    found: dict[str, Blob] = {}
    with ThreadPoolExecutor(ASKING) as pool:
        few = [url for names in of_folder.values() if len(names) <= LOOKED_UP for url in names]
        found |= {blob.url: blob for blob in pool.map(_look_up, few)}
        for blobs in pool.map(_list, [folder for folder, names in of_folder.items() if len(names) > LOOKED_UP]):
            found |= blobs
    for url in urls:
        if url not in found:
            raise _missing(url)
    return [found[url] for url in urls]


def files_below(folder: str) -> list[str]:
    """The objects in a folder and below it, sorted, as paths from it. Raises StorageError for a missing bucket."""
    fs = shared_filesystem(folder)
    root = f"{folder.rstrip('/').split('://', 1)[1]}/"
    try:
        with translating(folder):
            names = fs.find(folder)
    except FileNotFoundError:
        names = []
    found = sorted(name.removeprefix(root) for name in names if name.startswith(root))
    if not found:
        refuse_missing_bucket(folder)
    return found


def refuse_missing_bucket(url: str | os.PathLike[str]) -> None:
    """Raises StorageError where the server says that there is no bucket of this name; for after something was missing.

    Not before: an account may read objects without the right to look at the bucket. Local paths have none.
    """
    if not is_remote(url):
        return
    bucket = "/".join(os.fspath(url).split("/")[:3])
    try:
        with translating(bucket):
            shared_filesystem(bucket).info(bucket)
    except FileNotFoundError as error:
        raise no_bucket(os.fspath(url)) from error
    except OSError:
        return


def _missing(url: str) -> FileNotFoundError:
    refuse_missing_bucket(url)
    return FileNotFoundError(2, os.strerror(2), url)


def read_range(blob: Blob, start: int, size: int) -> bytes:
    """The bytes start..start + size of this version of an object, which must have them.

    Servers that fail are asked again for PATIENCE seconds. Raises ObjectChanged, and StorageError as `translating`.
    """
    if not size:
        return b""
    began, wait = time.monotonic(), 0.5
    while True:
        try:
            data = _read_range(blob, start, size)
            if len(data) == size:
                return data
            error = StorageError(f"{blob.url}: the server sent {len(data)} bytes instead of {size}.", "server")
        except StorageError as failure:
            error = failure
        if error.kind != "server" or time.monotonic() + wait > began + PATIENCE:
            raise error
        logging.log_every_n_seconds(logging.WARNING, "%s Trying again.", 10, error)
        time.sleep(wait * random.uniform(0.5, 1))
        wait = min(2 * wait, 15)


def _read_range(blob: Blob, start: int, size: int) -> bytes:
    try:
        with translating(blob.url):
            return _READERS[blob.url.split("://", 1)[0]](blob, start, size)
    except FileNotFoundError as error:
        raise ObjectChanged(f"{blob.url} has changed since it was first read, or was removed") from error
    except StorageError as error:
        if code_of(error) in (412, 416, "PreconditionFailed", "InvalidRange"):
            raise ObjectChanged(f"{blob.url} has changed since it was first read") from error
        raise


def _read_gs(blob: Blob, start: int, size: int) -> bytes:
    fs = shared_filesystem(blob.url)
    return fs.cat_file(blob.url, start=start, end=start + size, generation=blob.version)


def _read_s3(blob: Blob, start: int, size: int) -> bytes:
    from fsspec.asyn import sync

    fs = shared_filesystem(blob.url)
    bucket, key, _ = fs.split_path(blob.url)

    async def read() -> bytes:
        response = await fs._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{start + size - 1}", IfMatch=blob.version
        )
        async with response["Body"] as body:
            return await body.read()

    return sync(fs.loop, read)


_READERS = {"gs": _read_gs, "s3": _read_s3}


def _look_up(url: str) -> Blob:
    try:
        with translating(url):
            found = shared_filesystem(url).info(url)
    except FileNotFoundError as error:
        raise _missing(url) from error
    if found["type"] != "file":
        raise _missing(url)
    return _blob(url, found)


def _list(folder: str) -> Mapping[str, Blob]:
    try:
        with translating(folder):
            rows = shared_filesystem(folder).ls(folder, detail=True)
    except FileNotFoundError as error:
        raise _missing(folder) from error
    urls = [(f"{folder}/{row['name'].rstrip('/').rpartition('/')[2]}", row) for row in rows if row["type"] == "file"]
    return {url: _blob(url, row) for url, row in urls}


def _blob(url: str, found: Mapping[str, Any]) -> Blob:
    return Blob(url, int(found["size"]), str(found.get("generation") or found.get("ETag") or found["etag"]))
