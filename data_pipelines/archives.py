"""Members of tar and Debian archives, streamed without unpacking: no member's name is used as a path.

A decompression bomb ends in an ArchiveError before it can fill the memory: headers say how large a member is, pax and
GNU headers included, and decompressed bytes are counted.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_pipelines.command import PipelineError

MAX_MEMBER = 256 << 20  # bytes
MAX_TOTAL = 64 << 30  # bytes of one archive after decompression
MAX_RATIO = 200  # of decompressed to compressed bytes; photographs have 1, drawings and text below 50
_ALWAYS = 64 << 20  # bytes that every archive may decompress to, however small it is
_OPEN = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}


class ArchiveError(PipelineError):
    """An archive that is damaged, of an unknown kind, or too large."""


class Member(NamedTuple):
    name: str  # as stored, without a leading "./"
    data: bytes


def tar_members(
    path: str | Path,
    keep: Callable[[str], bool],
    refused: Callable[[str, str], None],
    *,
    max_member: int = MAX_MEMBER,
    max_total: int = MAX_TOTAL,
) -> Iterator[Member]:
    """The regular files for which keep(name), in the archive's order; plain, gzip, xz or bzip2.

    refused(cause, name) is called for members that are left out: names that climb out of the folder, links and devices,
    and files larger than max_member. Raises ArchiveError, after the members before that place, for damage and for more
    than max_total bytes or MAX_RATIO times the size of the file.
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
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_limited_header(max_member, path)) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if climbs_out(name):
                    refused("name climbs out of the archive", name)
                elif not member.isfile():
                    refused("link or device", name)
                elif member.size > max_member:
                    # The header does not show the size of a sparse file, or one given by a pax header.
                    refused("archive member too large", name)
                elif keep(name):
                    yield Member(name, tar.extractfile(member).read())
                tar.members.clear()  # tarfile keeps every header otherwise
        if not counted.read_bytes:
            raise ArchiveError(f"{path} is empty.")


def _limited_header(max_member: int, path: str) -> type[tarfile.TarInfo]:
    """A TarInfo that raises for any damaged header, and for pax headers and GNU long names that are too long.

    tarfile reads the latter into memory as a whole.
    """

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
            try:
                header = super().frombuf(buf, encoding, errors)
            except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
                # After the first member tarfile would take it for the end of the archive.
                raise ArchiveError(f"{path} is damaged: {error}.") from error
            if header.type in _READ_WHOLE and header.size > _MAX_HEADER:
                raise ArchiveError(f"{path} has a header of {header.size:,} bytes, the limit is {_MAX_HEADER:,}.")
            return header

    return Header


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
