"""Files of a source that lie in a bucket: pieces of them, read by range requests and kept on a local disk."""

from __future__ import annotations

import collections
import hashlib
import io
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.data.records import ManifestError, RecordError
from clipjax.storage import is_remote
from clipjax.storage.block_cache import Blob, BlockCache
from clipjax.storage.data_cache import cache_folder, cache_limit, claim
from clipjax.storage.ranges import ObjectChanged, blobs_of, read_range

FETCHING = 32  # requests at a time of one process
MOST_AHEAD = 256 << 20  # bytes of records that were fetched and not yet used, where nothing is kept
WINDOW = 8 << 20  # bytes that are read at a time from front to back
LARGE = 8 << 20  # bytes of a request; more are several at the same time

Piece = tuple[str, int, int]  # (file, first byte, bytes)


class BucketFiles:
    """Reads pieces of objects as OpenFiles reads pieces of files. Thread-safe; a pickled copy reads the same versions.

    Where all objects fit into the cache (clipjax.storage.data_cache), blocks of them are fetched and kept; otherwise
    each piece is a request of its own. The versions are those of the time when the source was opened: an object that
    is written over or removed gives bad records. A bucket that does not answer raises StorageError, which is no bad
    record.
    """

    def __init__(self, blobs: Sequence[Blob], path: str, whole: bool = False):
        """path: the source's, for messages. whole: objects are copied whole; raises ManifestError without room."""
        self.blobs = {blob.url: blob for blob in blobs}
        self.cache: BlockCache | None = claim(blobs)
        self._start()
        total = sum(blob.size for blob in blobs)
        if self.cache:
            logging.info("%s: %d objects, %s, are kept in %s as they are read.", path, len(blobs), _bytes(total),
                         self.cache.folder)  # fmt: skip
        elif whole:
            raise ManifestError(
                f"{path}: ArrayRecord is read from copies of its shards, {_bytes(total)}, and the cache "
                f"{cache_folder()} may take {_bytes(cache_limit())}. Raise config.data.cache_gib, name a larger disk "
                "in config.data.cache_dir, or mount the bucket (docs/buckets.md)."
            )
        elif cache_limit():
            logging.warning(
                "%s: %d objects, %s, are not kept on this machine, because the cache %s may take %s: every read is a "
                "request, in each epoch. Raise config.data.cache_gib, name a larger disk in config.data.cache_dir, or "
                "see docs/buckets.md.", path, len(blobs), _bytes(total), cache_folder(), _bytes(cache_limit()),
            )  # fmt: skip

    def _start(self) -> None:
        self.lock = threading.Lock()
        self.ahead: collections.OrderedDict[Piece, bytes | Exception] = collections.OrderedDict()
        self.seen: set[Any] = set()  # blocks and whole objects that were there once
        self.pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"blobs": self.blobs, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, path: str, start: int, size: int) -> bytes:
        """Raises RecordError for an object that has changed or ends before start + size, StorageError."""
        with self.lock:
            found = self.ahead.pop((path, start, size), None)
        if isinstance(found, bytes):
            return found
        if found is not None:
            raise found
        return self._read(path, start, size)

    def _read(self, path: str, start: int, size: int) -> bytes:
        blob = self.blobs[path]
        if start + size > blob.size:
            raise RecordError("unreadable record", f"{path} ends at byte {blob.size}, before {start + size}")
        try:
            return self.cache.read(blob, start, size) if self.cache else read_range(blob, start, size)
        except ObjectChanged as error:
            raise RecordError("changed object", str(error)) from error

    def fetch_ahead(self, pieces: Iterable[Piece]) -> None:
        """Fetches pieces at the same time, so that the reads of them, which must follow, need not wait one by one."""
        if self.cache:
            blocks = dict.fromkeys(
                (path, number) for path, start, size in pieces for number in self.cache.blocks(start, size)
            )
            self._all(self._keep, [block for block in blocks if block not in self.seen])
            return

        def fetch(piece: Piece) -> None:
            try:
                found: bytes | Exception = self._read(*piece)
            except Exception as error:  # the read of this piece raises it
                found = error
            with self.lock:
                self.ahead[piece] = found

        room = MOST_AHEAD
        wanted = []
        for piece in pieces:
            room -= piece[2]
            if room >= 0:
                wanted.append(piece)
        self._all(fetch, wanted)

    def local_path(self, path: str) -> Path:
        """Where `copy` puts an object."""
        return self.cache.whole_path(self.blobs[path])

    def copy(self, paths: Iterable[str]) -> None:
        """Copies objects whole, at the same time, unless they were. Raises RecordError for one that has changed."""
        missing = [path for path in paths if path not in self.seen]
        for done in [self._submit(self._copy, path) for path in missing[1:]]:
            done.exception()  # raised by whoever reads from it
        if missing:
            self._copy(missing[0])

    def _copy(self, path: str) -> None:
        try:
            self.cache.whole(self.blobs[path])
        except ObjectChanged as error:
            raise RecordError("changed object", str(error)) from error
        self.seen.add(path)

    def _keep(self, block: tuple[str, int]) -> None:
        path, number = block
        self.cache.keep(self.blobs[path], number)
        self.seen.add(block)

    def _all(self, fetch: Callable[[Any], None], items: Iterable[Any]) -> None:
        items = list(items)
        for done in [self._submit(fetch, item) for item in items] if len(items) > 1 else ():
            done.exception()  # the read that follows raises it again

    def _submit(self, fetch: Callable[[Any], None], item: Any) -> Future:
        with self.lock:
            if self.pool is None:
                self.pool = ThreadPoolExecutor(FETCHING, thread_name_prefix="fetch_ahead")
        return self.pool.submit(fetch, item)

    def state(self, path: str) -> tuple[int, int]:
        """(size, a number that another version of the object does not have), as a tar's size and time."""
        blob = self.blobs[path]
        return blob.size, int.from_bytes(hashlib.sha256(blob.version.encode()).digest()[:7], "big")

    def stream(self, path: str, window: int = 0) -> BucketStream:
        """The object as a file to read; window: bytes that are read at a time, which serves small reads from memory."""
        return BucketStream(lambda start, size: self._read_large(path, start, size), self.blobs[path].size, window)

    def _read_large(self, path: str, start: int, size: int) -> bytes:
        pieces = [(path, at, min(LARGE, start + size - at)) for at in range(start, start + size, LARGE)]
        self.fetch_ahead(pieces)
        return b"".join(self.read(*piece) for piece in pieces)


class BucketStream(io.RawIOBase):
    """An object in a bucket as a binary file. error: what a read has raised, which libraries may make another of."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, window: int = 0):
        self.read_at, self.size, self.window = read, size, window
        self.position, self.held, self.held_at = 0, b"", 0
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence])
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self.size - self.position)
        size = rest if size is None or size < 0 else min(size, rest)
        data = self._get(self.position, size) if size else b""
        self.position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self.read()

    def _get(self, start: int, size: int) -> bytes:
        at = start - self.held_at
        if 0 <= at and at + size <= len(self.held):
            return self.held[at : at + size]
        try:
            if not self.window or size > self.window:
                return self.read_at(start, size)
            first = start // self.window * self.window
            end = min(self.size, max(first + self.window, start + size))
            self.held, self.held_at = self.read_at(first, end - first), first
        except Exception as error:
            self.error = error
            raise
        return self.held[start - self.held_at :][:size]


def bucket_files(paths: Sequence[str], source: str, whole: bool = False) -> BucketFiles | None:
    """Reads the files of a source, if they lie in a bucket; None: they are local. The rest is as for BucketFiles."""
    if not is_remote(paths[0]):
        return None
    try:
        return BucketFiles(blobs_of(paths), source, whole)
    except FileNotFoundError as error:
        of = "" if error.filename == source else f", of '{source}'"
        raise ManifestError(
            f"There is no file '{error.filename}'{of}. Upload it, or name the files that there are."
        ) from error


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
