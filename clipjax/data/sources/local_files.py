"""The files that a source's path names, and reads of pieces of them."""

from __future__ import annotations

import collections
import glob
import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from absl import logging

from clipjax.config import SourceConfig
from clipjax.data.records import ManifestError, RecordError
from clipjax.files import glob_visible, hidden
from clipjax.storage import as_path, is_remote
from clipjax.storage.ranges import refuse_missing_bucket

MAX_FILES = 1_000_000  # that one pattern may name
MAX_OPEN = 128  # files of one source
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test")
HUB_FOLDER = "data"  # in which repositories of Hugging Face's hub have their files
PACKED = re.compile(r"\.(tgz|tar\.\w+)$")  # a tar that cannot be read in any order
RANGE = re.compile(r"(\d+)\.\.(\d+)")
NUMBERED = re.compile(r"(.*-)(\d{5,})-of-(\d{5,})(\..*)")


def find_files(config: SourceConfig, suffixes: Sequence[str], *, buckets: bool = False) -> list[Path]:
    """The files that config.path and config.split name, sorted. Raises ManifestError naming what is missing.

    config.path is a file, a pattern ({00..12}, {a,b}, *, ?, [ab]; ** for folders at any depth) or a folder. A split
    selects within a folder, or its subfolder HUB_FOLDER if only that has files: the subfolder of its name, or the files
    whose names begin with it or have it as a word. For "train" that is all files, unless some are named after another
    split. Where files are numbered like -00003-of-00128, all of them must be there. buckets: config.path may be in a
    bucket; files of it that are named without *, ? and [] are not looked up.
    """
    path = config.path
    if is_remote(path) and buckets:
        return _in_bucket(config, suffixes)
    if "://" in path:
        raise ManifestError(f"'{path}' is not local. Copy or mount the data: records are read in a random order.")
    if Path(path).is_dir():
        files = _of_folder(Path(path), config.split, suffixes)
    elif Path(path).exists():
        files = [Path(path)]
    else:
        files = [Path(match) for pattern in expand_braces(path) for match in _matches(pattern, path)]
    files = sorted(dict.fromkeys(files))
    for file in files:
        if not file.is_file():
            raise ManifestError(f"{file} is not a file.")
    _check_numbers(files)
    return files


def _in_bucket(config: SourceConfig, suffixes: Sequence[str]) -> list[Path]:
    names: list[str] = []
    for pattern in expand_braces(config.path):
        as_path(pattern)  # a wrong one is refused before the servers are asked
        try:
            names += _matches(pattern, config.path) if glob.has_magic(pattern) else [pattern]
        except (FileNotFoundError, ManifestError):
            refuse_missing_bucket(pattern)
            raise
    files = [as_path(name) for name in sorted(dict.fromkeys(names))]
    if len(files) == 1 and files[0].is_dir():
        files = _of_folder(files[0], config.split, suffixes)
    _check_numbers(files)
    return files


def expand_braces(pattern: str) -> Iterator[str]:
    """ "a-{08..10}.{x,y}" -> a-08.x, a-08.y, a-09.x, ...; numbers keep their leading zeros.

    Raises ManifestError for nested braces and for more than MAX_FILES names.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    if any("{" in piece or "}" in piece for piece in pieces):
        raise ManifestError(f"'{pattern}' has braces inside braces, or one without the other.")
    choices: list[Sequence[str]] = []
    for number, piece in enumerate(pieces):
        span = RANGE.fullmatch(piece) if number % 2 else None
        if span:
            first, last = int(span[1]), int(span[2])
            if last < first or last - first >= MAX_FILES:
                raise ManifestError(f"'{pattern}': {{{piece}}} must count upwards, over at most {MAX_FILES} numbers.")
            choices.append([str(i).zfill(len(span[1])) for i in range(first, last + 1)])
        else:
            choices.append(piece.split(",") if number % 2 else [piece])
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_FILES:
        raise ManifestError(f"'{pattern}' stands for {count} files, more than {MAX_FILES}.")
    return ("".join(parts) for parts in itertools.product(*choices))


def read_below(root: Path, path: str, limit: int) -> bytes:
    """The bytes of a file below a folder whose links are resolved.

    Raises RecordError for a file outside it, above limit, or not readable.
    """
    try:
        whole = (root / path).resolve()
        if not whole.is_relative_to(root):
            raise RecordError("path outside the folder", f"'{path}' is not in {root}")
        # Reading a pipe would never return.
        if not whole.is_file():
            cure = "; URLs are not fetched" if "://" in path else "; write folders with /" if "\\" in path else ""
            raise RecordError("unreadable record", f"'{path}' is not a file in {root}{cure}")
        size = whole.stat().st_size
        if size > limit:
            raise RecordError("record too large", f"'{path}' has {size} bytes, the limit is {limit}")
        return whole.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError("unreadable record", f"'{path}': {error}") from error


class OpenFiles:
    """Reads pieces of files and keeps the MAX_OPEN last used open. Thread-safe; a pickled copy opens files itself."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: collections.OrderedDict[str, BinaryIO] = collections.OrderedDict()

    def read(self, path: str, start: int, size: int) -> bytes:
        """Raises RecordError where the file cannot be read or ends before start + size."""
        try:
            # Not memory-mapped: a mapped file that is cut, or lies on a failing disk, kills the process.
            file = self.open(path)
            data = os.pread(file.fileno(), size, start)
            while len(data) < size:
                more = os.pread(file.fileno(), size - len(data), start + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise RecordError("unreadable record", f"{path}: {error}") from error
        if len(data) < size:
            raise RecordError("unreadable record", f"{path} ends at byte {start + len(data)}, before {start + size}")
        return data

    def open(self, path: str) -> BinaryIO:
        with self.lock:
            file = self.files.get(path)
            if file is None:
                file = self.files[path] = open(path, "rb", buffering=0)
            self.files.move_to_end(path)
            # Not closed here, as another thread may be reading; the file closes with its last reference.
            if len(self.files) > MAX_OPEN:
                self.files.popitem(last=False)
        return file

    def __reduce__(self) -> tuple:
        return OpenFiles, ()


def _of_folder(folder: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    if split and (folder / split).is_dir():
        folder, split = folder / split, ""
    elif (folder / HUB_FOLDER).is_dir() and not _files(folder, suffixes) and _files(folder / HUB_FOLDER, suffixes):
        folder = folder / HUB_FOLDER
    files = _files(folder, suffixes)
    others = _others(folder, suffixes)
    if not files:
        splits = _splits(folder, suffixes)
        no = f" It has no folder '{split}' for the split." if split else ""
        cure = f"{no} Set split to one of the folders that it has: {splits}." if splits else ""
        raise ManifestError(f"{folder} has no {' or '.join(suffixes)} file{others and f', but {others}'}.{cure}")
    if others:
        logging.warning("Not read in %s: %s. To read them, set path to a pattern that names all files.", folder, others)
    of = {file: split if _begins(file, split) else split_in(file.name) for file in files} if split else {}
    named = [file for file in files if of.get(file, split) == split]
    if named:
        unnamed = [file.name for file in files if of.get(file) == ""]
        if unnamed:
            logging.warning(
                "%d files in %s, such as %s, are not read, because others are named after the split '%s'",
                len(unnamed), folder, unnamed[0], split,
            )  # fmt: skip
        return named
    others = ", ".join(sorted({*of.values()} - {""}))
    if not others and re.search(rf"(^|[-_.]){re.escape(split)}$", folder.name):  # wds_cars_test, or the folder "test"
        return files
    if split != "train" or others:
        raise ManifestError(
            f"{folder} has no file named after the split '{split}', only {files[0].name}"
            + (f" and files of the split(s) {others}" if others else "")
            + ". Set split, or name the files by a pattern in path."
        )
    return files


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.name.lower().endswith(tuple(suffixes)) and not hidden(file.name)
    )


def _others(folder: Path, suffixes: Sequence[str]) -> str:
    """What looks like data in a folder and is not read: compressed tars, and files in its subfolders. "": nothing."""
    root = glob.escape(str(folder))
    packed = [name for name in glob_visible(f"{root}/*") if ".tar" in suffixes and PACKED.search(name)]
    inner = [name for name in glob_visible(f"{root}/*/*") if name.lower().endswith(tuple(suffixes))]
    return " and ".join(f"{len(names)} like {min(names)}" for names in (packed, inner) if names)


def _splits(folder: Path, suffixes: Sequence[str]) -> str:
    """The folders of a folder that have data themselves, as text; "": none."""
    inner = glob_visible(f"{glob.escape(str(folder))}/*/*")
    names = {Path(name).parent.name for name in inner if name.lower().endswith(tuple(suffixes))}
    return ", ".join(f"'{name}'" for name in sorted(names)[:10]) + (" ..." if len(names) > 10 else "")


def split_in(name: str) -> str:
    """The first of SPLITS that is a word of a file's or folder's name: "cc3m-Val_0.tar", "val2017" -> "val"; or ""."""
    words = (word.rstrip("0123456789").lower() for word in re.split("[-_. ]", name))
    return next((word for word in words if word in SPLITS), "")


def _begins(file: Path, split: str) -> bool:
    return re.match(rf"{re.escape(split)}[-_.]", file.name) is not None


def _matches(pattern: str, whole: str) -> list[str]:
    matches = glob_visible(pattern, recursive=True) if glob.has_magic(pattern) else [pattern] * os.path.exists(pattern)
    if not matches:
        of = "" if pattern == whole else f", of '{whole}'"
        near = [] if glob.has_magic(pattern) else glob_visible(f"{glob.escape(pattern.rstrip('/'))}[-_.]*")
        hint = f" There is '{min(near)}'." if near else ""
        raise ManifestError(
            f"There is no file '{pattern}'{of}.{hint} Build or copy it, or name the files that there are."
        )
    return matches


def _check_numbers(files: Sequence[Path]) -> None:
    """Raises ManifestError where some files of a set numbered like -00003-of-00128 are missing."""
    sets = collections.defaultdict(set)
    for file in files:
        if match := NUMBERED.fullmatch(file.name):
            sets[file.parent, match[1], match[3], match[4]].add(int(match[2]))
    for (folder, before, count, after), numbers in sets.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            name = f"{before}{missing[0]:0{len(count)}d}-of-{count}{after}"
            more = f" and {len(missing) - 1} more of its {int(count)}" if missing[1:] else ""
            raise ManifestError(f"{folder / name}{more} missing. Copy it again, or name the files by a pattern.")
