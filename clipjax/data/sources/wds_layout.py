"""CLIP_benchmark's layout of WebDatasets: the text files around the tars, and what they say of a sample's files.

    wds_NAME/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt
    wds_NAME/test/nshards.txt, 0.tar, 1.tar, ...

docs/published_sets.md says what is read and what is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from clipjax.config import SourceConfig
from clipjax.data.labels import NAMES_FILE, PUBLISHED_FILES, TYPE_FILE
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.fields import captions, decode
from clipjax.data.templates import TEMPLATES_FILE, read_template_lines
from clipjax.files import TextFileError, hidden, read_text, split_lines
from clipjax.storage import as_path
from clipjax.storage.data_cache import above_buckets

SHARDS_FILE = "nshards.txt"
ROW = "npy"  # the extension of a row of targets, and of other numbers about a sample
TEXTS = "txt"
CLASSES, CAPTIONS, SEVERAL_CLASSES = "classification", "retrieval", "multilabel"
NEEDS = {CLASSES: "cls", CAPTIONS: TEXTS, SEVERAL_CLASSES: ROW}  # the file that a sample of each task has
PROBED = 8  # samples that are read when a source is opened, to see whether they have it

Parts = Mapping[str, bytes]  # extension -> content


@dataclass(frozen=True)
class Layout:
    """What the text files around the tars say; without any of them, nothing."""

    task: str = ""  # one of NEEDS; "": unknown
    templates: tuple[str, ...] = ()
    origin: str = ""  # what says the task, for messages
    stated: bool = False  # the task is that of a TYPE_FILE

    def needed(self, label_key: str, text_key: str, default: str) -> str:
        """The extension of the file that a sample of this task has; "": any. default: the label_key that is not set."""
        own = text_key if self.task == CAPTIONS else label_key if label_key != default else ""
        if own and self.task != SEVERAL_CLASSES:
            return ""
        return own or NEEDS.get(self.task, "")

    def check(self, samples: Sequence[tuple[str, Parts]], needed: str, num_classes: int, names: str) -> int:
        """The number of targets of a sample; 0 without classes.

        samples: the first ones, each with the place that names it in errors. num_classes: of the class names, 0
        without; names: where they are from. Raises ManifestError where no sample has the file that the task needs, and
        where the rows of targets are of another width than the class names.
        """
        if needed and samples and not any(needed in parts for _, parts in samples):
            where, parts = samples[0]
            if self.stated or ROW in parts:
                raise ManifestError(
                    f"{self.origin}, whose samples have a .{needed}, but {where} has "
                    f"{', '.join(f'.{name}' for name in sorted(parts))}. Correct {TYPE_FILE}: {', '.join(NEEDS)}; "
                    "without the file, the set is classification."
                )
        if self.task != SEVERAL_CLASSES:
            return num_classes
        return _width([(where, parts[needed]) for where, parts in samples if needed in parts], num_classes, names)


def read_layout(tars: Sequence[Path], config: SourceConfig) -> tuple[list[Path], Layout]:
    """(the tars in the order of their numbers, what the files around them say).

    Tars are of the layout if their folder has SHARDS_FILE, or it or the folder above has one of PUBLISHED_FILES; others
    are left as they are. Where config.path is a folder, its tars must be those that SHARDS_FILE counts. Raises
    ManifestError for files that contradict each other, or that cannot be read, and for tars of several folders of which
    only some are of the layout, or whose files differ.
    """
    folders = list(dict.fromkeys(tar.parent for tar in tars))
    layouts = {folder: _layout_of(folder) for folder in folders}
    if not any(layouts.values()):
        return list(tars), Layout()
    for folder in folders:
        if layouts[folder] and as_path(config.path).is_dir():
            _check_shards(folder)
    found = [layouts[folder] or Layout() for folder in folders]
    for folder, layout in zip(folders, found, strict=True):
        for what, one, other in (
            ("task", found[0].task or "unknown", layout.task or "unknown"),
            ("templates", found[0].templates, layout.templates),
        ):
            if one != other:
                raise ManifestError(
                    f"The tars of {folders[0]} and {folder} are of different sets: the {what} of the first is {one}, "
                    f"of the second {other}. Read them as two sources."
                )
    return sorted(tars, key=lambda tar: (str(tar.parent), _number(tar), tar.name)), found[0]


def has_caption_lines(tar: str | Path) -> bool:
    """Whether the files around a tar say that a .txt in it has a caption a line. Raises ManifestError."""
    layout = _layout_of(as_path(str(tar)).parent)
    return layout is not None and layout.task == CAPTIONS


def caption_lines(data: bytes, where: str) -> list[str]:
    """The captions of a .txt, one a line, in which backslash-n is a newline inside a caption; without empty ones.

    Raises RecordError as clipjax.data.sources.fields.decode and captions do.
    """
    lines = [line.replace("\\n", "\n") for line in split_lines(decode(data, where))]
    return captions({TEXTS: lines}, TEXTS)


def read_targets(data: bytes, where: str, width: int) -> np.ndarray:
    """[width] uint8: 1 for the classes that an image has, 0 for the others, of the contents of a .npy.

    width: 0 allows any. Raises RecordError for another width, other values, and files that read_array refuses.
    """
    row = read_array(data, where)
    if row.ndim != 1:
        raise RecordError("corrupt record", f"{where} has the shape {row.shape}, expected one row of 0 and 1")
    if width and len(row) != width:
        raise RecordError(
            "wrong number of targets", f"{where} has {len(row)} numbers, expected one for each of {width}"
        )
    if not np.isin(row, (0, 1)).all():
        at = int(np.flatnonzero(~np.isin(row, (0, 1)))[0])
        raise RecordError("unusable label", f"{where} has {row[at]} for class {at}, expected 0 or 1")
    return row.astype(np.uint8)


def read_array(data: bytes, where: str) -> np.ndarray:
    """The numbers in the contents of a .npy. Nothing in it is run, and nothing larger than the file is allocated.

    Raises RecordError for what is not NumPy's format, for pickled objects and texts, and for files that are cut.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except Exception as error:  # NumPy raises ValueError and whatever its parser raises for a damaged header
        raise RecordError("corrupt record", f"{where} is not a .npy file: {error}") from error
    if dtype.hasobject:
        raise RecordError("corrupt record", f"{where} holds pickled objects, which are not read; expected numbers")
    if dtype.kind not in "biuf":
        raise RecordError("corrupt record", f"{where} holds {dtype}, expected numbers")
    rest = data[file.tell() :]
    size = dtype.itemsize
    for length in shape:
        size *= length
    if len(rest) != size or min(shape, default=0) < 0:
        raise RecordError(
            "corrupt record", f"{where} has {len(rest)} bytes of data, expected {size} for {shape} of {dtype}"
        )
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if by_columns else "C")


def _layout_of(folder: Path) -> Layout | None:
    """What the files in the folder of some tars and the one above say; None without any. Raises ManifestError."""
    around = {name: _beside(folder, name) for name in PUBLISHED_FILES}
    kind, templates = around[TYPE_FILE], around[TEMPLATES_FILE]
    if not (kind or templates or (folder / SHARDS_FILE).is_file()):
        return None
    try:
        lines = read_template_lines(templates) if templates else ()
        value = read_text(kind).strip() if kind else ""
    except (OSError, TextFileError) as error:
        raise ManifestError(f"Read with the tars in {folder}: {error}") from error
    if kind and value.lower() not in NEEDS:
        raise ManifestError(
            f"{kind} says '{value[:50]}', expected {', '.join(NEEDS)}. Without the file, the set is classification."
        )
    names = templates or _beside(folder, NAMES_FILE)
    if kind:
        return Layout(value.lower(), lines, f"{kind} says {value.lower()}", True)
    if names:
        return Layout(CLASSES, lines, f"There is no {names.parent / TYPE_FILE}: the set is classification")
    return Layout("", lines)


def _beside(folder: Path, name: str) -> Path | None:
    folders = [place for place in (folder, folder.parent) if not above_buckets(place)]
    return next((place / name for place in folders if (place / name).is_file()), None)


def _check_shards(folder: Path) -> None:
    """Raises ManifestError unless the tars in the folder are those that its SHARDS_FILE counts."""
    path = folder / SHARDS_FILE
    tars = [tar for tar in folder.iterdir() if tar.suffix.lower() == ".tar" and not hidden(tar.name)]
    tars.sort(key=lambda tar: (_number(tar), tar.name))
    numbers = [_number(tar) for tar in tars if _number(tar) >= 0]
    if path.is_file():
        wanted = range(_count(path))
        said = f"{path} says {len(wanted)} tars, 0.tar to {len(wanted) - 1}.tar"
    else:
        logging.warning("%s is absent: it cannot be checked whether tars are missing at the end of the set", path)
        wanted = range(min(numbers), max(numbers) + 1) if len(numbers) == len(tars) else range(len(tars))
        said = f"The tars in {folder} are numbered from {wanted[0]} to {wanted[-1]}"
    missing = [number for number in wanted if number not in set(numbers)] if numbers else []
    others = [tar.name for tar in tars if _number(tar) not in wanted] if numbers else []
    found = f"there are {len(tars)}: {', '.join(tar.name for tar in tars[:5])}{', ...' if tars[5:] else ''}"
    if missing or len(tars) < len(wanted):
        what = (
            f"{missing[0]}.tar{f' and {len(missing) - 1} more' * bool(missing[1:])} missing" if missing else "some are"
        )
        raise ManifestError(
            f"{said}, but {what} ({found}). Copy the set again; to read only the tars that there are, name them by a "
            "pattern in path."
        )
    if others or len(tars) > len(wanted):
        raise ManifestError(
            f"{said}, but {found}. Correct the number, or move away what is not the set's"
            f"{f', such as {others[0]}' if others else ''}."
        )


def _count(path: Path) -> int:
    """The number in SHARDS_FILE. Raises ManifestError."""
    try:
        text = read_text(path).strip()
    except (OSError, TextFileError) as error:
        raise ManifestError(f"The number of tars cannot be read: {error}") from error
    if not re.fullmatch("[0-9]{1,9}", text) or not int(text):
        raise ManifestError(f"{path} says '{text[:50]}', expected one whole number from 1: how many tars there are.")
    return int(text)


def _number(tar: Path) -> int:
    """7 for "7.tar", -1 for a name that is no number."""
    return int(tar.stem) if re.fullmatch("[0-9]{1,9}", tar.stem) else -1


def _width(rows: Sequence[tuple[str, bytes]], num_classes: int, names: str) -> int:
    """The width of the first rows that can be read. Raises ManifestError where it is not num_classes."""
    widths: dict[int, str] = {}
    for where, data in rows:
        try:
            widths.setdefault(len(read_targets(data, where, 0)), where)
        except RecordError:  # a bad record, which says why
            continue
    if num_classes and widths and num_classes not in widths:
        width, where = next(iter(widths.items()))
        raise ManifestError(
            f"{where} has {width} targets, but {names} has {num_classes} names. Each row has a 0 or 1 for every name."
        )
    return num_classes or next(iter(widths), 0)


def metadata(parts: Parts) -> dict[str, Any]:
    """{"metadata": the numbers of the .npy beside a .cls}, as DataComp's copies of WILDS have; {} without."""
    try:
        return {"metadata": read_array(parts[ROW], ROW)} if ROW in parts else {}
    except RecordError:  # of no use to the label, nor to anything but the few metrics that ask for it
        return {}
