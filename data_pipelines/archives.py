"""Members of tar and Debian archives, streamed without unpacking: no member's name is used as a path.

A decompression bomb ends in an ArchiveError before it can fill the memory: headers say how large a member is, pax and
GNU headers included, and decompressed bytes are counted.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from absl import logging

from clipjax.data.sources.tar_format import find_header, packed_by, printable
from data_pipelines.command import PipelineError

MAX_MEMBER = 256 << 20  # bytes
MAX_TOTAL = 64 << 30  # bytes of one archive after decompression
MAX_RATIO = 200  # of decompressed to compressed bytes; photographs have 1, drawings and text below 50
_CHUNK = 1 << 20
_ALWAYS = 64 << 20  # bytes that every archive may decompress to, however small it is
_OPEN = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}


class ArchiveError(PipelineError):
    """An archive that is damaged, of an unknown kind, or too large."""


class Member(NamedTuple):
    name: str  # as stored, without a leading "./"; bytes that are not UTF-8 as Python's surrogate escapes
    data: bytes
    part: int = 0  # number of the archive, in a file of several that were joined


def tar_members(
    path: str | Path,
    keep: Callable[[str], bool],
    refused: Callable[[str, str], None],
    *,
    max_member: int = MAX_MEMBER,
    max_total: int = MAX_TOTAL,
) -> Iterator[Member]:
    """The regular files for which keep(name), in the archive's order; plain, gzip, xz or bzip2.

    Archives that were joined into one file by `cat` are all read, with a warning.
    refused(cause, name) is called for members that are left out: names that climb out of the folder, links and devices,
    and files larger than max_member; once for bytes after the end that are no archive; and once for an archive without
    an end mark, which may have been cut between two members. Raises ArchiveError, after the members before that place,
    for damage and for more than max_total bytes or MAX_RATIO times the size of the file.
    """
    with open(path, "rb") as file:
        yield from _members(file, str(path), Path(path).stat().st_size, keep, refused, max_member, max_total)


def deb_members(
    path: str | Path,
    keep: Callable[[str], bool],
    refused: Callable[[str, str], None],
    *,
    max_member: int = MAX_MEMBER,
    max_total: int = MAX_TOTAL,
) -> Iterator[Member]:
    """As tar_members, for the files of a Debian package: deb(5), an ar archive with a data.tar.*."""
    with open(path, "rb") as file:
        part, size = _data_tar(file, str(path))
        yield from _members(part, str(path), size, keep, refused, max_member, max_total)


def climbs_out(name: str) -> bool:
    """Whether unpacking a member of this name could write outside of the folder."""
    return name.startswith(("/", "\\")) or ":" in name[:2] or ".." in name.replace("\\", "/").split("/")


def _members(
    file: BinaryIO,
    path: str,
    size: int,
    keep: Callable[[str], bool],
    refused: Callable[[str, str], None],
    max_member: int,
    max_total: int,
) -> Iterator[Member]:
    limit = min(max_total, max(_ALWAYS, MAX_RATIO * size))
    with _damage_as_archive_error(path), _decompressed(file) as plain:
        counted = _Counted(plain, limit, path)
        header = _limited_header(max_member, path)
        # ignore_zeros: what follows an end mark is read on; the header raises where it is no archive.
        with tarfile.open(
            fileobj=counted, mode="r|", tarinfo=header, ignore_zeros=True, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            try:
                for member in tar:
                    if (data := _data_of(tar, member, keep, refused, max_member)) is not None:
                        yield Member(_name(member), data, member.part)
                    tar.members.clear()  # tarfile keeps every header otherwise
            except _NoArchive as after:
                rest = itertools.chain([after.block], iter(lambda: tar.fileobj.read(_CHUNK), b""))
                refused("no part of the archive", f"{path}, {_trailing(path, after, rest)}")
        if header.cut:
            refused("no end mark: the archive may have been cut between two files", path)
        if header.parts > 1:
            logging.warning("%s is %d archives joined into one file, and all of them are read.", path, header.parts)
        if not counted.read_bytes:
            raise ArchiveError(f"{path} is empty.")


def _trailing(path: str, after: _NoArchive, rest: Iterable[bytes]) -> str:
    """What to say of bytes after an end mark, `rest`. Raises ArchiveError where members are lost in them."""
    found = f"the block at byte {after.position}, after an end mark, is neither zeros nor a tar header"
    lost = find_header(rest, after.position)
    if lost is not None:
        raise ArchiveError(f"{path} is damaged: {found}, but one follows at byte {lost}.") from after
    if packed := packed_by(after.block.lstrip(b"\0")):
        raise ArchiveError(f"{path}: {found}, but data compressed by {packed}. Unpack them and join the tars again.")
    if after.position - after.end < 2 * tarfile.BLOCKSIZE:  # what ends an archive
        raise ArchiveError(f"{path} is damaged: the header at byte {after.end} is overwritten by zeros.")
    return f"{found}: what follows is not read"


def _data_of(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    keep: Callable[[str], bool],
    refused: Callable[[str, str], None],
    max_member: int,
) -> bytes | None:
    """The content of a member that is kept; None for the others."""
    name = _name(member)
    if member.isdir():
        return None
    if climbs_out(name):
        refused("name climbs out of the archive", printable(name))
    elif not member.isfile():
        refused("link or device", printable(name))
    elif member.size > max_member:
        # The header does not show the size of a sparse file, or one given by a pax header.
        refused("archive member too large", printable(name))
    elif keep(name):
        return tar.extractfile(member).read()
    return None


def _name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def _limited_header(max_member: int, path: str) -> type[tarfile.TarInfo]:
    """A TarInfo that raises for any damaged header, and for pax headers and GNU long names that are too long.

    tarfile reads the latter into memory as a whole. It counts archives: a header after an end mark begins another one.
    """

    class Header(tarfile.TarInfo):
        parts, position, end = 0, 0, 0  # end: where the end mark before this header is; -1: there is none
        part, cut = 0, False  # cut: whether the file ends without an end mark

        @classmethod
        def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
            Header.position = tar.fileobj.tell()
            return super().fromtarfile(tar)

        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
            if not buf.strip(b"\0"):
                Header.cut = not buf and Header.end < 0
                Header.end = Header.position if Header.end < 0 else Header.end
                if len(buf) < tarfile.BLOCKSIZE and Header.parts:  # zeros up to the end of the file
                    raise tarfile.EmptyHeaderError("empty header")
            try:
                header = super().frombuf(buf, encoding, errors)
            except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
                # After the first member tarfile would take it for the end of the archive.
                if Header.parts and Header.end >= 0:
                    raise _NoArchive(buf, Header.position, Header.end) from error
                raise ArchiveError(f"{path} is damaged: {error}, at byte {Header.position}.") from error
            if header.type in _READ_WHOLE and header.size > _MAX_HEADER:
                raise ArchiveError(f"{path} has a header of {header.size:,} bytes, the limit is {_MAX_HEADER:,}.")
            if Header.end >= 0:
                Header.parts, Header.end = Header.parts + 1, -1
            header.part = Header.parts - 1
            return header

    return Header


class _NoArchive(Exception):
    """After the end mark at byte `end`, at byte `position`: a block that is neither zeros nor a header."""

    def __init__(self, block: bytes, position: int, end: int):
        super().__init__(position)
        self.block, self.position, self.end = block, position, end


_MAX_HEADER = 1 << 20
_READ_WHOLE = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")


class _Counted:
    """A file for tarfile's streaming mode that counts the bytes it gives."""

    def __init__(self, file: BinaryIO, limit: int, path: str):
        self.file, self.limit, self.path, self.read_bytes = file, limit, path, 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.read_bytes += len(data)
        if self.read_bytes > self.limit:
            raise ArchiveError(
                f"{self.path} holds more than {self.limit:,} bytes, at most {MAX_RATIO} times its own size: "
                "not read further."
            )
        return data


def _decompressed(file: BinaryIO) -> BinaryIO:
    head = file.read(6)
    file.seek(-len(head), 1)
    opened = next((opener for magic, opener in _OPEN.items() if head.startswith(magic)), None)
    return opened(file) if opened else file


@contextmanager
def _damage_as_archive_error(path: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise ArchiveError(f"{path} is damaged: {error}.") from error


class _Part:
    """Bytes first..first+size of a file, for decompressors."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.first, self.size = file, file.tell(), size

    def read(self, size: int = -1) -> bytes:
        left = self.size - self.tell()
        return self.file.read(left if size < 0 else min(size, left))

    def tell(self) -> int:
        return self.file.tell() - self.first

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: self.first, 1: self.file.tell(), 2: self.first + self.size}[whence]
        self.file.seek(base + offset)
        return self.tell()

    def seekable(self) -> bool:
        return True

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _data_tar(file: BinaryIO, path: str) -> tuple[_Part, int]:
    if file.read(8) != b"!<arch>\n":
        raise ArchiveError(f"{path} is not a Debian package.")
    while len(header := file.read(60)) == 60:
        name, digits = header[:16].strip().rstrip(b"/").decode("ascii", "replace"), header[48:58].strip()
        if header[58:] != b"`\n" or not digits.isdigit():
            break
        if name in ("data.tar", "data.tar.gz", "data.tar.xz", "data.tar.bz2"):
            return _Part(file, int(digits)), int(digits)
        if name.startswith("data.tar"):
            raise ArchiveError(f"{path} has its files in {name}; those in .gz, .xz and .bz2 can be read.")
        file.seek(int(digits) + int(digits) % 2, 1)
    raise ArchiveError(f"{path} is a damaged Debian package: it has no data.tar.")
