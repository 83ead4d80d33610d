"""The format of tars: their members, and the sample that a member's name belongs to.

POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), GNU tar's long names, and archives joined into one file by `cat`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from clipjax.files import hidden

BLOCK = 512
NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
META = re.compile(r"__[^/]*__(/|$)")  # WebDataset's names for what describes a tar
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAX_EXTENDED = 1 << 20  # bytes of a long name or a pax header
_MAGIC_AT = 257  # where "ustar" is in a header
_CHUNK = 1 << 20


class TarError(ValueError):
    """A tar that is cut, damaged or of a format without random access."""


class Member(NamedTuple):
    name: str  # bytes that are not UTF-8 as Python's surrogate escapes: printable() shows them
    kind: bytes  # b"0": a regular file
    header: int  # where its first header is
    data: int
    size: int
    end: int  # where the next member begins
    part: int  # number of the archive, in a file of several that were joined


@dataclass
class Ending:
    """What follows the last member."""

    zeros: int = 0  # bytes; 0: no end mark
    garbage: int = -1  # where bytes begin that are neither zeros nor a tar; -1: none


def split_name(name: str) -> tuple[str, str] | None:
    """ "a/b.c.JPG" -> ("a/b", "c.jpg"), WebDataset's rule; None for a name that belongs to no sample.

    The extension is all that follows the first dot of the last part. Hidden files belong to no sample.
    """
    if (name[:2] == "__" and META.match(name)) or hidden(name):
        return None
    match = NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def printable(name: str) -> str:
    """A member's name with bytes that are not UTF-8 as \\xe9: different names stay different."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def allowed(member: Member) -> bool:
    """Whether a member is a regular file whose name stays inside the folder it would be unpacked to."""
    return (
        member.kind in (b"0", b"\0", b"7")
        and not member.name.startswith("/")
        and ".." not in member.name.split("/")
        and "\0" not in member.name
    )


def members(file: BinaryIO, size: int, start: int = 0, ending: Ending | None = None) -> Iterator[Member]:
    """The members in bytes start..size of a tar; start is where a header is.

    Blocks of zeros end an archive; if another archive follows them, it is read too. ending: is told what follows the
    last member. Raises TarError, also where members follow that would be lost behind damage.
    """
    position, header_at, part, seen, extended = start, start, 0, False, {}
    while position < size:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK or position + BLOCK > size:
            raise _no_header(header, position, f"it is cut at byte {size}, inside a header")
        if not header.strip(b"\0"):
            if extended:
                raise TarError(f"the long name at byte {header_at} has no file")
            following = _after_end(file, position, size, ending or Ending())
            if following is None:
                return
            position = header_at = following
            part += 1 if seen else 0
            continue
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
        yield Member(extended.get("path") or _name(header), kind, header_at, data, length, end, part)
        header_at, seen, extended = position, True, {}


def _after_end(file: BinaryIO, position: int, size: int, ending: Ending) -> int | None:
    """Where the next joined archive begins after the end mark at `position`; None if there is none. Raises TarError."""
    first = _first_byte(file, position, size)
    ending.zeros = first - position
    if first == size:
        return None
    block = first - (first - position) % BLOCK
    file.seek(block)
    header = file.read(BLOCK)
    if _is_header(header, block):
        return block
    what = f"the archive ends at byte {position}, and byte {first} begins what is neither zeros nor a tar header"
    if packed := packed_by(header[first - block :]):
        raise TarError(f"{what}, but data compressed by {packed}. Unpack them and join the tars again")
    if first - position < 2 * BLOCK:  # what ends an archive
        raise TarError(f"the header at byte {position} is overwritten by zeros")
    file.seek(first)
    lost = find_header(iter(lambda: file.read(_CHUNK), b""), first)
    if lost is not None:
        raise TarError(f"{what}, but another member follows at byte {lost}: it is damaged, or was joined to a cut tar")
    ending.garbage = first
    return None


def _first_byte(file: BinaryIO, position: int, size: int) -> int:
    """Where the first byte is, from position on, that is not zero; size: nowhere."""
    file.seek(position)
    while position < size:
        chunk = file.read(min(_CHUNK, size - position))
        if not chunk:
            break
        rest = chunk.lstrip(b"\0")
        if rest:
            return position + len(chunk) - len(rest)
        position += len(chunk)
    return size


def find_header(chunks: Iterable[bytes], position: int) -> int | None:
    """Where a header begins, at any byte of the chunks, the first of which is at `position`; None: nowhere."""
    data = b""
    for chunk in chunks:
        kept = data[-2 * BLOCK :]
        position += len(data) - len(kept)
        data = kept + chunk
        at = data.find(b"ustar")
        while at >= 0:
            begin = at - _MAGIC_AT
            if begin >= 0 and _is_header(data[begin : begin + BLOCK], position + begin):
                return position + begin
            at = data.find(b"ustar", at + 1)
    return None


def _no_header(data: bytes, position: int, problem: str) -> TarError:
    packed = packed_by(data) if position == 0 else ""
    if position == 0 and data.startswith(b"version https://git-lfs"):
        return TarError("it is Git LFS's pointer to the tar, not the tar; run `git lfs pull` in its repository")
    return TarError(
        f"it is compressed by {packed}, which has no random access; unpack it to a .tar first" if packed else problem
    )


def packed_by(data: bytes) -> str:
    """The name of the compression that data begin with; "": none."""
    return next((name for magic, name in PACKED.items() if data.startswith(magic)), "")


def _is_header(block: bytes, position: int) -> bool:
    try:
        return len(block) == BLOCK and _parse(block, position)[1] >= 0
    except TarError:
        return False


def _parse(header: bytes, position: int) -> tuple[bytes, int]:
    """(kind, size of the data) of a header whose checksum is right. Raises TarError."""
    try:
        checksum, length = _number(header[148:156]), _number(header[124:136])
    except ValueError as error:
        raise _no_header(header, position, f"no tar header at byte {position} ({error})") from error
    summed = header[:148] + b" " * 8 + header[156:]
    # Some old tars added up signed characters.
    if length < 0 or (checksum != sum(summed) and checksum != sum(struct.unpack("512b", summed))):
        raise _no_header(header, position, f"no tar header at byte {position}: its checksum is wrong")
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
    return data.split(b"\0")[0].decode("utf-8", "surrogateescape")


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
            fields[key.decode("utf-8")] = value.decode("utf-8", "surrogateescape")
            at += int(digits)
        if int(fields.get("size", 0)) < 0:
            raise ValueError("a negative size")
    except ValueError as error:
        raise TarError(f"the pax header at byte {position} is damaged ({error})") from error
    return fields
