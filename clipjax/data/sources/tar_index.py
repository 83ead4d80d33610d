"""Where the samples of a tar lie: one pass over its headers makes an index, which is kept beside it.

A sample is a run of files with one key, which is the name up to the first dot of its last part (WebDataset's rule).
Formats: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), and GNU tar's long names.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import logging

from clipjax.data.records import ManifestError
from clipjax.files import replacing

BLOCK = 512
VERSION = 1
NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAX_EXTENDED = 1 << 20  # bytes of a long name or a pax header


class TarError(ValueError):
    """A tar that is cut, damaged or of a format without random access."""


class Member(NamedTuple):
    name: str
    kind: bytes  # b"0": a regular file
    header: int  # where its first header is
    data: int
    size: int
    end: int  # where the next member begins


class TarIndex(NamedTuple):
    spans: np.ndarray  # [N, 2] int64: first and last byte + 1 of each sample, headers included
    refused: int  # files left out: links, devices, names that climb out of the folder


def load_index(path: str, folder: str = "") -> TarIndex:
    """The index of a tar; made and saved if there is none for the file's present size and time.

    folder: where the index is kept; "": beside the tar. Where it cannot be written, it is made again at each start.
    Raises ManifestError naming the file, and the byte where it is cut or damaged.
    """
    saved = _saved_as(path, folder)
    try:
        status = os.stat(path)
        stamp = [[VERSION, 0], [status.st_size, status.st_mtime_ns]]
        index = _read(saved, stamp)
        if index is not None:
            return index
        with open(path, "rb") as file:
            spans, refused = index_tar(file)
    except (OSError, TarError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    stamp[0][1] = refused
    table = np.array([*stamp, *spans], np.int64)
    try:
        with replacing(saved) as temporary:
            np.save(temporary, table)
    except OSError as error:
        logging.log_first_n(
            logging.WARNING,
            "Indexes cannot be kept in %s (%s): they are made again at each start. Set the source's data_dir to a "
            "folder that can be written.", 1, saved.parent, error,
        )  # fmt: skip
    return TarIndex(table[2:], refused)


def index_tar(file: BinaryIO) -> tuple[list[list[int]], int]:
    """(first and last byte + 1 of each sample, files refused). Raises TarError."""
    spans: list[list[int]] = []
    refused, current, end = 0, None, 0
    size = os.fstat(file.fileno()).st_size
    for member in members(file, size):
        end = member.end
        if member.kind == b"5":
            continue
        if not allowed(member):
            refused += 1
            continue
        parts = split_name(member.name)
        if parts is None:
            continue
        if parts[0] == current:
            spans[-1][1] = member.data + member.size
        else:
            spans.append([member.header, member.data + member.size])
            current = parts[0]
    if end >= size:
        logging.warning("%s has no end mark: it may have been cut between two files.", file.name)
    return spans, refused


def split_name(name: str) -> tuple[str, str] | None:
    """ "a/b.c.jpg" -> ("a/b", "c.jpg"); None for a name that belongs to no sample."""
    if "/" not in name and name.startswith("__") and name.endswith("__"):
        return None
    match = NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def allowed(member: Member) -> bool:
    """Whether a member is a regular file whose name stays inside the folder it would be unpacked to."""
    return (
        member.kind in (b"0", b"\0", b"7")
        and not member.name.startswith("/")
        and ".." not in member.name.split("/")
        and "\0" not in member.name
    )


def members(file: BinaryIO, size: int) -> Iterator[Member]:
    """The members in the first `size` bytes of a tar, or of a part of a tar that begins with a header.

    Raises TarError.
    """
    position, header_at, extended = 0, 0, {}
    while position < size:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK or position + BLOCK > size:
            raise TarError(f"it is cut at byte {size}, inside a header")
        if not header.strip(b"\0"):
            return
        kind, length = _parse(header, position)
        data = position + BLOCK
        if kind in b"123456":  # links, devices and folders have no data, whatever size their header gives
            length = 0
        elif kind not in b"xgLK":
            length = int(extended.get("size", length))
        end = data + -(-length // BLOCK) * BLOCK
        if data + length > size:
            raise TarError(f"it is cut at byte {size}: the member at byte {position} goes on to {data + length}")
        position = end
        if kind in b"xgLK":
            if length > MAX_EXTENDED:
                raise TarError(f"the header at byte {data - BLOCK} has {length} bytes, the limit is {MAX_EXTENDED}")
            body = file.read(length)
            if kind == b"L":
                extended["path"] = _text(body)
            elif kind == b"x":
                extended |= _pax(body, data)
            continue  # b"g" describes all members, b"K" a link's target; neither changes a file's name or size
        if kind == b"S" or any(key.startswith("GNU.sparse") for key in extended):
            raise TarError(f"the member at byte {data - BLOCK} is sparse; pack it again without --sparse")
        yield Member(extended.get("path") or _name(header), kind, header_at, data, length, end)
        header_at, extended = position, {}


def _parse(header: bytes, position: int) -> tuple[bytes, int]:
    """(kind, size of the data) of a header whose checksum is right. Raises TarError."""
    for magic, name in PACKED.items():
        if position == 0 and header.startswith(magic):
            raise TarError(f"it is compressed by {name}, which has no random access; unpack it to a .tar first")
    try:
        checksum, length = _number(header[148:156]), _number(header[124:136])
    except ValueError as error:
        raise TarError(f"no tar header at byte {position} ({error})") from error
    summed = header[:148] + b" " * 8 + header[156:]
    # Some old tars added up signed characters.
    if length < 0 or (checksum != sum(summed) and checksum != sum(struct.unpack("512b", summed))):
        raise TarError(f"no tar header at byte {position}: its checksum is wrong")
    return header[156:157], length


def _number(field: bytes) -> int:
    if field[0] in (0x80, 0xFF):  # GNU's binary numbers
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.split(b"\0")[0].decode("utf-8", "replace")


def _pax(body: bytes, position: int) -> dict[str, str]:
    """ "20 path=some/name\\n" lines -> {"path": "some/name"}."""
    fields, at = {}, 0
    try:
        while at < len(body):
            digits = body[at : body.index(b" ", at)]
            line = body[at + len(digits) + 1 : at + int(digits) - 1]
            if int(digits) < len(digits) + 3:
                raise ValueError("a line without length")
            key, value = line.split(b"=", 1)
            fields[key.decode("utf-8")] = value.decode("utf-8", "replace")
            at += int(digits)
        if int(fields.get("size", 0)) < 0:
            raise ValueError("a negative size")
    except ValueError as error:
        raise TarError(f"the pax header at byte {position} is damaged ({error})") from error
    return fields


def _saved_as(path: str, folder: str) -> Path:
    if not folder:
        return Path(f"{path}.clipjax-index.npy")
    whole = os.path.abspath(path)
    return Path(folder) / f"{Path(path).name}.{hashlib.sha256(whole.encode()).hexdigest()[:16]}.clipjax-index.npy"


def _read(saved: Path, stamp: list[list[int]]) -> TarIndex | None:
    """None where there is no index, or one that is damaged or belongs to another version of the file."""
    try:
        table = np.load(saved, allow_pickle=False)
    except Exception:  # NumPy raises many kinds for a damaged file, MemoryError included
        return None
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1:] != (2,) or len(table) < 2:
        return None
    if table[0, 0] != VERSION or table[1].tolist() != stamp[1]:
        return None
    spans = table[2:]
    ends = np.concatenate([[0], spans.reshape(-1)])
    sound = (np.diff(ends) >= 0).all() and ends[-1] <= stamp[1][0]
    return TarIndex(spans, int(table[0, 1])) if sound else None
