"""Zip archives of weights (.npz, PyTorch's .pt), which anyone may have written: bounded, and whole or refused.

What a file unpacks to is told by its directory before anything is unpacked: members that share bytes, that claim to
unpack to far more than numbers do, or that are too many are refused. docs/interop.md lists the limits.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from clipjax.files import not_a_file
from clipjax.interop.names import InteropError

MAX_DIRECTORY = 16 << 20  # bytes of an archive's list of members: about 150,000 of them
MAX_RATIO = 20  # of what an archive unpacks to and its own size, above FREE bytes; weights pack by less than 2
FREE = 64 << 20
_CHUNK = 1 << 20
KINDS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_END, _LONGEST_COMMENT = struct.Struct("<4s4H2LH"), 1 << 16
_LOCATOR, _END_64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")


@contextmanager
def open_archive(path: Path, checked: bool = False) -> Iterator[zipfile.ZipFile]:
    """An open archive. Errors of the format inside the block become InteropErrors, too.

    checked: its directory was checked when it was opened before. Raises InteropError for a file that is cut short,
    damaged, encrypted, or made to unpack to more than it holds.
    """
    refuse_special(path)
    try:
        with open(path, "rb") as file:
            _check_directory(file, path)
            with zipfile.ZipFile(file) as archive:
                if not checked:
                    _check_members(archive, path)
                yield archive
    except InteropError:
        raise
    except OSError as error:
        if error.filename:
            raise
        raise InteropError(f"{path} is truncated or damaged: {error}.") from error
    except Exception as error:  # zipfile and zlib raise many kinds for damaged archives
        raise InteropError(f"{path} is truncated or damaged: {type(error).__name__} {error}.") from error


def read_member(archive: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    """The content of a member. Raises InteropError above `limit` bytes."""
    size = archive.getinfo(name).file_size
    if size > limit:
        raise InteropError(f"{path}: {name!r} has {size:,} bytes, the limit is {limit:,}.")
    return archive.read(name)


def read_part(file: IO[bytes], start: int, size: int) -> bytes:
    """Bytes start..start+size of an open member; fewer where it ends before.

    The end of a member tells whether its checksum is right: it is read, unless the part is the smaller share of it.
    """
    _skip(file, start)
    data = file.read(size)
    if size >= start:
        _skip(file, size + 1)
    return data


def refuse_special(path: Path) -> None:
    """Raises InteropError for a folder, a pipe, a device or a socket, which reading might never end."""
    if kind := not_a_file(path):
        raise InteropError(f"{path} is {kind}; expected a file of weights.")


def _skip(file: IO[bytes], size: int) -> None:
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        size -= len(chunk)


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Refuses a list of members that would take minutes and gigabytes to read. Other damage is left to zipfile."""
    size = file.seek(0, 2)
    start = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at >= 0 and len(tail) - at >= _END.size:
        length = _END.unpack_from(tail, at)[5]
        if at >= _LOCATOR.size and tail[at - _LOCATOR.size :].startswith(b"PK\6\7"):
            file.seek(min(_LOCATOR.unpack_from(tail, at - _LOCATOR.size)[2], size))
            record = file.read(_END_64.size)
            length = max(length if length < 2**32 - 1 else 0, *_long_lengths(record, tail, at))
        if min(length, size) > MAX_DIRECTORY:
            raise InteropError(
                f"{path} has a list of members of {min(length, size):,} bytes; the limit is {MAX_DIRECTORY:,}, more "
                "than any model's tensors need. This is not a file of weights."
            )
    file.seek(0)


def _long_lengths(record: bytes, tail: bytes, at: int) -> list[int]:
    """The length of the list by the 64-bit record where the locator says, and where zipfile looks: before it."""
    before = tail[max(0, at - _LOCATOR.size - _END_64.size) : max(0, at - _LOCATOR.size)]
    return [_END_64.unpack(each)[8] for each in (record, before) if len(each) == _END_64.size and each[:4] == b"PK\6\6"]


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    members, size = archive.infolist(), path.stat().st_size
    names: set[str] = set()
    for info in members:
        if info.flag_bits & 1:
            raise InteropError(f"{path} is encrypted: {info.filename!r} needs a password. Unpack it and pack it again.")
        if info.compress_type not in KINDS:
            raise InteropError(f"{path}: {info.filename!r} is packed by method {info.compress_type}; expected deflate.")
        if info.filename in names:
            raise InteropError(f"{path} has two members that are called {info.filename!r}.")
        names.add(info.filename)
        stored = info.compress_type == zipfile.ZIP_STORED
        if info.header_offset < 0 or (stored and info.file_size != info.compress_size):
            raise InteropError(f"{path} is damaged: {info.filename!r} has {info.file_size} bytes, not those it says.")
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end or info.header_offset + info.compress_size > size:
            raise InteropError(f"{path} is damaged: {info.filename!r} shares its bytes with another member.")
        end = info.header_offset + 30 + info.compress_size
    total = sum(info.file_size for info in members)
    if total > FREE + MAX_RATIO * size:
        raise InteropError(
            f"{path} has {size:,} bytes and unpacks to {total:,}, more than {MAX_RATIO} times as many: not weights."
        )
