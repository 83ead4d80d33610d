"""Files that are written whole or not at all, text files of any origin, JSON lines, and which files are hidden."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically: neither a reader nor a crash ever sees half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` on success and is removed on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a file; {} where there is none: no file, or one that cannot be read or holds something else."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects in order; [] without the file. Lines that are torn, or hold no object, are left out."""
    path = Path(path)
    lines = []
    for text in split_lines(path.read_text(encoding="utf-8")) if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; the mark is left out.

    Raises TextFileError for a file in another encoding or with zero bytes, OSError for one that cannot be read.
    """
    return decode_text(Path(path).read_bytes(), str(path))


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


def numbered_lines(path: str | Path, *, gaps: bool = False) -> list[str]:
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

    return [path for path in glob.glob(pattern, recursive=recursive) if not any(map(unasked, path.split("/")))]


_LEFTOVERS = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
     "lost+found")
)  # fmt: skip
