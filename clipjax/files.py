"""Files that are written whole or not at all, text files of any origin, and which files are hidden."""

from __future__ import annotations

import codecs
import fcntl
import fnmatch
import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipjax import signals, storage
from clipjax.storage import AnyPath


def write_text(path: str | AnyPath, text: str) -> None:
    """Writes UTF-8 text atomically: neither a reader nor a crash ever sees half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | AnyPath) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` on success and is removed on an error or a signal.

    What a process that was killed has left of the same file is removed first, unless somebody is still writing it. An
    OSError names `path`. For a path in a bucket, the temporary file is local, and uploaded whole on success.
    """
    if storage.is_remote(path):
        with _uploading(path) as folder:
            yield (temporary := folder / storage.as_path(path).name)
            storage.upload_file(temporary, path)
        return
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    temporary = Path(name)
    _lock(handle)
    try:
        with signals.tidying(lambda _: temporary.unlink(missing_ok=True)), naming(path, instead_of=temporary):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    finally:
        os.close(handle)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(destination: str | AnyPath) -> Iterator[Path]:
    """A temporary folder that becomes `destination` on success, and is removed on an error or a signal.

    For a destination in a bucket, the temporary folder is local, and uploaded on success as storage.upload_folder does.
    """
    if storage.is_remote(destination):
        with _uploading(destination) as temporary:
            yield temporary
            storage.upload_folder(temporary, destination)
        return
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(destination)
    temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-"))
    handle = os.open(temporary, os.O_RDONLY)
    _lock(handle)
    try:
        with signals.tidying(lambda _: shutil.rmtree(temporary, ignore_errors=True)):
            yield temporary
            temporary.chmod(0o755)
            temporary.rename(destination)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _uploading(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A local temporary folder for what will be uploaded to `path`; removed on success, an error or a signal."""
    storage.as_path(path)  # a wrong one is refused before the work
    temporary = Path(tempfile.mkdtemp(prefix="clipjax-upload-"))
    try:
        with signals.tidying(lambda _: shutil.rmtree(temporary, ignore_errors=True)):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: str | AnyPath) -> None:
    """Removes what killed processes have left of `path`; what a living one still writes has its lock, and stays.

    In a bucket nothing is left beside `path`.
    """
    if storage.is_remote(path):
        return
    path = Path(path)
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    names = re.compile(rf"\.{re.escape(stem)}-[a-z0-9_]{{8}}{re.escape(suffix)}")
    entries = []
    with suppress(OSError):  # no folder, or no permission to list it
        entries = list(path.parent.iterdir())
    for leftover in entries:
        if names.fullmatch(leftover.name) is None or leftover.is_symlink():
            continue
        with suppress(OSError):  # it is gone, locked, or on a file system without locks
            handle = os.open(leftover, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(handle)


@contextmanager
def naming(path: str | AnyPath, *, instead_of: str | Path | None = None) -> Iterator[None]:
    """Makes an OSError of the block name `path`, where it names no file, as a full disk does, or `instead_of`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename) == str(instead_of)):
            error.filename, error.filename2 = str(path), None
        raise


def _lock(handle: int) -> None:
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_text(path: str | AnyPath, limit: int = 0) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; the mark is left out.

    limit: bytes; 0: MAX_TEXT. Raises TextFileError for a file in another encoding or with zero bytes, above the limit,
    or that is a pipe, a device or a socket; OSError for one that cannot be read.
    """
    return decode_text(read_file(path, limit or MAX_TEXT), str(path))


def read_file(path: str | AnyPath, limit: int) -> bytes:
    """The bytes of a file. Raises TextFileError above the limit, and for what is no file; OSError as open does."""
    if storage.is_remote(path):
        data = storage.read_bytes(storage.as_path(path), limit)
    else:
        kind = not_a_file(path)
        if kind and kind != "a folder":  # opening a folder says so itself; reading a pipe may never return
            raise TextFileError(f"{path} is {kind}; expected a file.")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise TextFileError(f"{path} has more than {limit:,} bytes, the limit for files of its kind.")
    return data


def not_a_file(path: str | AnyPath) -> str:
    """What a path names if it is no file, such as "a named pipe"; "": a file, or nothing. Links are followed."""
    if storage.is_remote(path):
        return "a folder" if storage.as_path(path).is_dir() else ""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "")


def printable(text: object, lines: bool = True) -> str:
    r"""A text from a file as it is shown in a terminal or a log: control characters as \x1b, \u202e.

    A terminal obeys such characters: they move the cursor, hide or recolour text and turn its direction. lines: whether
    a newline is one, too; False keeps the lines of a message that has several.
    """
    return (_CONTROL if lines else _CONTROL_IN_LINES).sub(_escaped, str(text))


def message_text(message: object) -> str:
    """An error's or a warning's text as a terminal or a log gets it: printable, its lines cut to LONGEST_LINE."""
    lines = printable(message, lines=False).split("\n")
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ... ({len(line):,} characters)" for line in lines
    )


def _escaped(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def decode_text(data: bytes, where: str) -> str:
    """The bytes of a whole text file as read_text reads them. where: names the file in the error."""
    encoding = text_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(split_lines(data[: error.start].decode(encoding, "replace") + "x"))
        raise TextFileError(
            f"{where}, line {line}: not {encoding.removesuffix('-sig').upper()} "
            f"(byte {error.start} is 0x{data[error.start]:02x}). Save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = len(split_lines(text[: text.index("\0")] + "x"))
        raise TextFileError(
            f"{where}, line {line}: a zero byte, as in UTF-16 without a byte order mark. Save the file as UTF-8."
        )
    return text


def text_encoding(head: bytes) -> str:
    """Python's name for the encoding of a text that begins with these bytes: by its byte order mark, else UTF-8."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def split_lines(text: str) -> list[str]:
    r"""The lines of a text, which end in "\n", "\r\n" or "\r" and in nothing else.

    str.splitlines also ends a line at U+2028, U+0085, form feeds and others, which occur inside captions and names.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def numbered_lines(path: str | AnyPath, *, gaps: bool = False) -> list[str]:
    """The lines of a file whose line numbers mean something, such as class names by label: stripped, from 0.

    Empty lines at the end are dropped. Raises TextFileError for an empty line before the last name, where one reader
    would count the line and another not, unless gaps says that empty lines count; and as read_text does.
    """
    lines = [line.strip() for line in split_lines(read_text(path))]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines and not gaps:
        raise TextFileError(
            f"{path}, line {lines.index('') + 1} is empty, and the lines after it would change their numbers. "
            "Remove the line, or write the missing name."
        )
    return lines


class TextFileError(ValueError):
    """A text file that cannot be read as one; the message names the file, the line and the cure."""


MAX_TEXT = 64 << 20  # bytes of a text file that is read whole; the largest tokenizer.json in use has 34 MB
LONGEST_LINE = 4000  # characters of a message, which may quote a file
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
# C0 and C1 controls, lone surrogates, marks that turn the direction of writing, and Unicode's line separators.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_CONTROL_IN_LINES = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
# UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def hidden(path: str) -> bool:
    """Whether a path, relative to the folder or archive that a user named, is no data of theirs.

    True below and for names that begin with a dot (.ipynb_checkpoints, ._a.jpg, .DS_Store), and for what Windows, macOS
    and network disks leave in folders (__MACOSX, Thumbs.db, @eaDir). Every list of images, tars or tables leaves these
    out by this rule.
    """
    parts = path.lower().split("/")
    dotted = (path[:1] == "." or "/." in path) and any(part[:1] == "." and part not in (".", "..") for part in parts)
    return dotted or not _LEFTOVERS.isdisjoint(parts)


def glob_visible(pattern: str, *, recursive: bool = False) -> list[str]:
    """The paths that match a shell pattern, without hidden ones, unless it names them as "/data/.cache/*.tar" does."""
    named = [part for part in pattern.split("/") if hidden(part)]

    def unasked(part: str) -> bool:
        return hidden(part) and not any(fnmatch.fnmatchcase(part, name) for name in named)

    found = storage.glob(pattern) if storage.is_remote(pattern) else glob.glob(pattern, recursive=recursive)
    return [path for path in found if not any(map(unasked, path.split("/")))]


_LEFTOVERS = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
     "lost+found")
)  # fmt: skip
