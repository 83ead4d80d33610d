"""Data from buckets, kept on a local disk in blocks, within a number of bytes that all processes of a host share.

    FOLDER/blocks/3f/3f0c…             4 MiB of an object, with checksums
           whole/91/91ab…/x.arrayrecord   an object for a reader that needs a file
           used                           bytes in the two folders; locked by whoever changes it

A block's name is made of the object's address, its version (generation or ETag), and the block's place in it. So an
object that was written over has other blocks, and nobody reads the old ones, which are removed in time: when there is
no more room, what was read longest ago goes first.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

BLOCK = 4 << 20  # bytes of an object that are fetched and kept together
CHUNK = 16 << 10  # bytes of a block under one checksum
NAME = 16  # bytes of a block's name, which is also the block's end
KEPT = 0.9  # share of the limit that remains when room is made
TOUCHED = 60  # seconds within which a block's time of use is not written again
ABANDONED = 3600  # seconds after which a block that is being written was left by a process that ended
FETCHING = 8  # blocks of a whole object at a time


class Blob(NamedTuple):
    """One version of an object in a bucket."""

    url: str
    size: int  # bytes
    version: str  # generation (GCS) or ETag (S3): another one after every write


Fetch = Callable[[Blob, int, int], bytes]  # (object, first byte, number of bytes) -> the bytes


@dataclass
class BlockCache:
    """Reads pieces of objects through a folder. Thread-safe; a pickled copy uses the same folder.

    fetch: reads from the bucket; what it raises goes to the caller. Whatever the folder's disk raises does not: then
    pieces are read from the bucket, which a warning says once.
    """

    folder: Path
    limit: int  # bytes
    fetch: Fetch
    block: int = BLOCK
    turns: dict[str, list] = field(default_factory=dict, repr=False)
    guard: threading.Lock = field(default_factory=threading.Lock, repr=False)
    host: int = field(default=-1, repr=False)  # open file that processes lock blocks in
    usable: bool = True

    def __reduce__(self) -> tuple:
        return BlockCache, (self.folder, self.limit, self.fetch, self.block)

    def read(self, blob: Blob, start: int, size: int) -> bytes:
        """The bytes start..start + size of an object that has them."""
        pieces = []
        while size > 0:
            number, begin = divmod(start, self.block)
            count = min(size, self.block - begin)
            pieces.append(self._piece(blob, number, begin, count))
            start, size = start + count, size - count
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def blocks(self, start: int, size: int) -> range:
        """The numbers of the blocks that hold these bytes."""
        return range(start // self.block, -(-(start + size) // self.block))

    def keep(self, blob: Blob, number: int) -> None:
        """Fetches a block unless it is there; after that, reads of it are local."""
        self._piece(blob, number, 0, 1)

    def whole(self, blob: Blob) -> Path:
        """A local file that is the whole object, for readers that take nothing else.

        Raises OSError where it cannot be kept.
        """
        path = self.whole_path(blob)
        with self._turn(path.parent.name):
            if path.is_file() and path.stat().st_size == blob.size:
                _touch(path, path.stat().st_mtime)
                return path
            if not self._make_room(blob.size):
                raise OSError(f"{self.folder} has no room for {blob.url} of {blob.size:,} bytes")
            with _written(path) as temporary:
                self._fetch_whole(blob, temporary)
        return path

    def whole_path(self, blob: Blob) -> Path:
        """Where `whole` puts an object."""
        name = _name(blob, -1, blob.size).hex()
        return self.folder / "whole" / name[:2] / name / blob.url.rpartition("/")[2]

    def _fetch_whole(self, blob: Blob, path: Path) -> None:
        def fetch(start: int) -> None:
            os.pwrite(file.fileno(), self.fetch(blob, start, min(self.block, blob.size - start)), start)

        with open(path, "r+b") as file, ThreadPoolExecutor(FETCHING) as pool:
            collections.deque(pool.map(fetch, range(0, blob.size, self.block)), maxlen=0)
            os.fsync(file.fileno())

    def _piece(self, blob: Blob, number: int, begin: int, count: int) -> bytes:
        first = number * self.block
        length = min(self.block, blob.size - first)
        name = _name(blob, first, length)
        path = self.folder / "blocks" / name.hex()[:2] / name.hex()
        if (found := _stored(path, name, length, begin, count)) is not None:
            return found
        if not self.usable:
            return self.fetch(blob, first + begin, count)
        with self._turn(name.hex()):
            if (found := _stored(path, name, length, begin, count)) is not None:
                return found
            data = self.fetch(blob, first, length)
            self._store(path, name, data)
        return data[begin : begin + count]

    def _store(self, path: Path, name: bytes, data: bytes) -> None:
        sums = [zlib.crc32(data[start : start + CHUNK]) for start in range(0, len(data), CHUNK)]
        content = data + np.array(sums, "<u4").tobytes() + name
        try:
            if self._make_room(len(content)):
                with _written(path) as temporary:
                    temporary.write_bytes(content)
        except OSError as error:
            self.usable = False
            logging.warning(
                "%s cannot keep data from buckets (%s): what is not there yet is read from the bucket each time. Set "
                "config.data.cache_dir to a folder on a local disk with free space.", self.folder, error,
            )  # fmt: skip

    def _make_room(self, size: int) -> bool:
        """Counts `size` more bytes, after removing what was read longest ago if need be; False: there is no room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "used", "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            used = int(text) if text.isdigit() else -1
            if used < 0 or used + size > self.limit:
                used = self._remove_oldest(size)
            fits = used + size <= self.limit
            file.truncate(0)
            file.write(str(used + size * fits).encode())
        return fits

    def _remove_oldest(self, size: int) -> int:
        """Removes files until `size` more bytes fit; returns the bytes that remain."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names if folder != str(self.folder) else ():
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):  # another process has removed it
                    status = os.stat(path)
                    if _is_temporary(name) and status.st_mtime < time.time() - ABANDONED:
                        os.unlink(path)
                    else:
                        found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        if total + size > self.limit:
            for _, bytes_, path in sorted(found):
                if total + size <= self.limit * KEPT:
                    break
                if not _is_temporary(path):
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                    total -= bytes_
        return total

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """One thread of one process of this host fetches what has this name, while others wait for it."""
        with self.guard:
            turn = self.turns.setdefault(name, [threading.Lock(), 0])
            turn[1] += 1
        try:
            with turn[0], self._host_turn(int(name[:15], 16)):
                yield
        finally:
            with self.guard:
                turn[1] -= 1
                if not turn[1]:
                    self.turns.pop(name, None)

    @contextlib.contextmanager
    def _host_turn(self, place: int) -> Iterator[None]:
        """Locks one byte of a file, as another process that fetches the same does.

        Where the file system has no locks, two processes may fetch the same.
        """
        try:
            with self.guard:
                if self.host < 0:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self.host = os.open(self.folder / "turns", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.lockf(self.host, fcntl.LOCK_EX, 1, place)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self.host, fcntl.LOCK_UN, 1, place)


def room_on(folder: Path, limit: int) -> int:
    """`limit`, or half of what the disk has free and the cache in this folder already takes, whichever is less."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        used = int((folder / "used").read_text() or 0)
    except (OSError, ValueError):
        used = 0
    return min(limit, (shutil.disk_usage(there).free + used) // 2)


def _name(blob: Blob, first: int, length: int) -> bytes:
    text = "\0".join((blob.url, blob.version, str(blob.size), str(first), str(length)))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=NAME).digest()


def _stored(path: Path, name: bytes, length: int, begin: int, count: int) -> bytes | None:
    """A piece of a block that is kept; None where it is not, or is not as it was written, which removes it."""
    first, last = begin // CHUNK * CHUNK, min(-(-(begin + count) // CHUNK) * CHUNK, length)
    chunks = -(-length // CHUNK)
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        data = os.pread(handle, last - first, first)
        end = os.pread(handle, 4 * chunks + NAME, length)
        sound = status.st_size == length + 4 * chunks + NAME and end[4 * chunks :] == name and len(data) == last - first
        sums = np.frombuffer(end[: 4 * chunks], "<u4") if sound else ()
        if sound and all(
            zlib.crc32(data[start : start + CHUNK]) == sums[(first + start) // CHUNK]
            for start in range(0, len(data), CHUNK)
        ):
            _touch(path, status.st_mtime)
            return data[begin - first : begin - first + count]
    except OSError as error:
        logging.warning("%s cannot be read (%s); it is downloaded again.", path, error)
        return None
    finally:
        os.close(handle)
    logging.warning("%s is damaged; it is downloaded again.", path)
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _touch(path: Path, modified: float) -> None:
    if modified < time.time() - TOUCHED:
        with contextlib.suppress(OSError):
            os.utime(path)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when all of it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        temporary.touch()
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_temporary(name: str) -> bool:
    return name.endswith(".part")
