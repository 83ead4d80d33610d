"""Labels: the one rule by which a value says which class a record has, wherever the value comes from.

    7, 7.0, "7", "007"     a line of the class names, counted from 0
    "cat"                  the line of the class names that says cat
    None, "", -1           the record has no label
    7.5, NaN, True, -2     refused, as is a text that is not among the names, and a number beyond them

Class names come with the data (a manifest, Hugging Face's ClassLabel, TFDS) or from a file `classnames.txt` beside
them. Without either, texts are their own names, sorted, and numbers have none.
"""

from __future__ import annotations

import collections
import functools
import numbers
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from clipjax.config import nearest
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.templates import TEMPLATES_FILE
from clipjax.files import TextFileError, decode_text, numbered_lines
from clipjax.storage.data_cache import above_buckets

NAMES_FILE = "classnames.txt"
TYPE_FILE = "dataset_type.txt"
PUBLISHED_FILES = (TEMPLATES_FILE, TYPE_FILE)  # which CLIP_benchmark writes beside NAMES_FILE
CAUSE = "unusable label"
MAX_LABEL = 2**31 - 1  # of a batch's int32
MAX_CLASSES = 1 << 20  # different texts of a column; more are captions, not classes
_WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?(([0-9]+[.,]?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)

Label = int | str | None  # a line of the names, a text to look up in them, or none


def read_label(value: Any, where: str) -> Label:
    """What a value says: the number of a line, a text, or None for no label. Raises RecordError for other values.

    where: names the value in the error.
    """
    if value is None:
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = decode_text(bytes(value), where)
        except TextFileError as error:
            raise RecordError(CAUSE, f"{where} is not UTF-8: {bytes(value)[:20]!r}") from error
    if isinstance(value, str):
        text = value.strip().removeprefix("\ufeff").strip()
        if any("\ud800" <= character <= "\udfff" for character in text):  # a byte that was not UTF-8
            raise RecordError(CAUSE, f"{where} is not UTF-8: {text[:20]!r}")
        whole = _WHOLE.fullmatch(text)
        return _line(_int(whole[1]), value, where) if whole else text or None
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Number | Decimal):
        raise RecordError(CAUSE, f"{where} is {_shown(value)}, expected a whole number or a class name")
    if value != value or isinstance(value, complex) or value in (float("inf"), -float("inf")) or value != int(value):
        cure = " (null or an empty field means no label)" if value != value else ""
        raise RecordError(CAUSE, f"{where} is {_shown(value)}, expected a whole number{cure}")
    return _line(int(value), value, where)


@dataclass(frozen=True)
class ClassNames:
    """Class names, the place they come from, and the lookup of labels in them. No names: labels are any numbers."""

    names: tuple[str, ...] = ()
    origin: str = ""  # for messages: a file, or "the ClassLabel of FILE"
    path: str = ""  # of the file that the names were read from, if they were

    def number(self, value: Any, where: str) -> int:
        """The line of the class that a value means (see read_label), -1 for none.

        where: names the value in errors. Raises RecordError for a value that means no class, a number beyond the
        names, and a text that is not exactly one of the names.
        """
        label = read_label(value, where)
        if label is None:
            return -1
        if isinstance(label, str):
            return self._of_text(label, where)
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if isinstance(text, str) and label >= 0:
            other = [line for line in self._lines.get(_key(text), ()) if line != label]
            if other:
                raise RecordError(
                    CAUSE,
                    f"{where} is '{text.strip()}', which is the number of a line and also the name in line "
                    f"{other[0]} of {self.origin}. Write the line's number instead of such a name",
                )
        if self.names and label >= len(self.names):
            raise RecordError(
                CAUSE,
                f"{where} is {label}, but {self.origin} has {len(self.names)} names; labels count its lines from 0",
            )
        return label

    def _of_text(self, label: str, where: str) -> int:
        lines = self._lines.get(_key(label), ())
        if len(lines) == 1:
            return lines[0]
        if lines:
            raise RecordError(
                CAUSE,
                f"{where} is '{label}', the name in lines {', '.join(map(str, lines))} (from 0) of {self.origin}. "
                "Write the number of the line instead",
            )
        if not self.names:
            raise RecordError(
                CAUSE,
                f"{where} is '{label[:50]}', and there are no class names to look it up in. Expected a whole number, "
                f"or a file {NAMES_FILE} with one name per line beside the data",
            )
        hint = nearest(label, self.names).split(" Known")[0]
        raise RecordError(CAUSE, f"{where} is '{label[:50]}', which is not among the names in {self.origin}.{hint}")

    @functools.cached_property
    def _lines(self) -> dict[str, list[int]]:
        lines: dict[str, list[int]] = {}
        for line, name in enumerate(self.names):
            lines.setdefault(_key(name), []).append(line)
        return lines


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """The lines of a file of class names; a name that is there twice is logged, as no text can mean either of them.

    An empty line is a class with an empty name where CLIP_benchmark's other files lie beside the names, as in its
    vtab/clevr_closest_object_distance; it is logged. Raises TextFileError as clipjax.files.numbered_lines does.
    """
    published = Path(path).name == NAMES_FILE and any((Path(path).parent / name).is_file() for name in PUBLISHED_FILES)
    names = tuple(numbered_lines(path, gaps=published))
    if "" in names:
        logging.warning("%s, line %d is empty: class %d has an empty name", path, names.index("") + 1, names.index(""))
    repeated = repeated_names(names)
    if repeated:
        logging.warning("%s has names that occur more than once, which only numbers can tell apart: %s", path, repeated)
    for first in (0, 1):
        if names[1:] and all(re.match(rf"{line}[\s:,;.)]", name) for line, name in enumerate(names, first)):
            logging.warning("Every line of %s begins with its number, which becomes part of the class's name", path)
    for what, written in {"is in quotation marks": r"""(["']).*\1[,;]?""", "ends with a comma": ".*,"}.items():
        if names[1:] and all(re.fullmatch(written, name) for name in names):
            logging.warning("Every line of %s %s, which becomes part of the class's name", path, what)
            break
    return names


def names_beside(*folders: Path) -> ClassNames:
    """The names in the file NAMES_FILE of the first folder that has one; no names otherwise. Raises ManifestError."""
    for folder in folders:
        if not above_buckets(folder) and (path := folder / NAMES_FILE).is_file():
            return names_in(path)
    return ClassNames()


def names_in(path: str | Path) -> ClassNames:
    """The names in a file. Raises ManifestError for a file that is missing, empty, or not a text file of names."""
    try:
        names = read_class_names(path)
    except (OSError, TextFileError) as error:
        raise ManifestError(f"The class names cannot be read: {error}") from error
    if not names:
        raise ManifestError(f"{path} is empty; expected one class name per line.")
    return ClassNames(names, str(path), str(path))


def names_of_texts(labels: Iterable[tuple[Label, str]], origin: str) -> ClassNames:
    """The sorted distinct texts among labels, as names; no names where the labels are numbers.

    labels: (label as read_label gives it, where it is from). Raises ManifestError where some labels are numbers and
    some are texts, for texts that look like numbers (7.5, "7,0", nan), and for more than MAX_CLASSES texts.
    """
    texts: dict[str, str] = {}
    numbered: tuple[int, str] | None = None
    for label, where in labels:
        if isinstance(label, str):
            texts.setdefault(_key(label), where)
            if len(texts) > MAX_CLASSES:
                raise ManifestError(
                    f"{origin} has more than {MAX_CLASSES:,} different texts as labels; these are not classes. "
                    "Set label_key='' to read no labels."
                )
        elif label is not None and label >= 0:
            numbered = numbered or (label, where)
    for text, where in texts.items():
        if _NUMBER.fullmatch(text):
            raise ManifestError(
                f"{where}: the label is {text}, expected a whole number or a class name. An empty field means no "
                f"label; if '{text}' is a name, list all names in a file {NAMES_FILE} beside the data."
            )
    if texts and numbered:
        text, where = next(iter(texts.items()))
        raise ManifestError(
            f"{origin} has numbers and texts as labels: {numbered[0]} ({numbered[1]}) and '{text}' ({where}). Use one "
            f"kind, or list all names in a file {NAMES_FILE} beside the data: numbers are then its lines from 0."
        )
    return ClassNames(tuple(sorted(texts)), f"the labels of {origin}") if texts else ClassNames()


def one_list_of_names(lists: Iterable[ClassNames]) -> ClassNames:
    """The names that all lists with names agree on. Raises ManifestError naming two that differ, and where."""
    first = ClassNames()
    for names in lists:
        if not first.names or _only_numbers(first, names):
            first = names if names.names else first
        elif names.names and not _only_numbers(names, first) and [*map(_key, names.names)] != [*map(_key, first.names)]:
            raise ManifestError(
                f"The class names of {first.origin} and {names.origin} differ: "
                f"{first_difference(first.names, names.names)}. The same label would mean two classes: give both the "
                "same names, or read them as two sources."
            )
    return first


def _only_numbers(one: ClassNames, other: ClassNames) -> bool:
    """Whether `one` has only the classes' numbers, for which `other` may have names."""
    return are_numbers(one.names) and len(one.names) <= len(other.names)


def first_difference(one: Sequence[str], other: Sequence[str]) -> str:
    """Where two lists of names differ first, as text: line 3 (from 0) is 'cat' in one and 'dog' in the other."""
    line = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if line is None:
        return f"one has {len(one)} names and the other {len(other)}"
    return f"line {line} (from 0) is '{one[line]}' in the first and '{other[line]}' in the second"


def match_names(own: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """The line of `names` that each of the data's own names is; None where that is not certain.

    It is certain where both lists begin alike, and where each own name is exactly one line of `names`. Names that are
    only their own numbers (see are_numbers) are lines already.
    """
    own, names = [_key(name) for name in own], [_key(name) for name in names]
    if len(own) <= len(names) and (own == names[: len(own)] or are_numbers(own)):
        return list(range(len(own)))
    counts = collections.Counter(names)
    if len(set(own)) < len(own) or any(counts[name] != 1 for name in own):
        return None
    lines = {name: line for line, name in enumerate(names)}
    return [lines[name] for name in own]


def are_numbers(names: Sequence[str]) -> bool:
    """Whether line i says i, for every line: classes that have numbers and no names."""
    return len(names) > 0 and all(name == str(line) for line, name in enumerate(names))


def repeated_names(names: Sequence[str]) -> str:
    """The names that occur more than once, with their lines, as text; "" where there are none."""
    lines: Mapping[str, list[int]] = ClassNames(tuple(names))._lines
    repeated = [f"'{name}' in lines {', '.join(map(str, at))}" for name, at in lines.items() if len(at) > 1]
    return "; ".join(repeated[:5]) + ("; ..." if repeated[5:] else "")


def _key(name: str) -> str:
    """The form in which names are compared: without white space around them, accents as one character (NFC)."""
    return unicodedata.normalize("NFC", name.strip())


def _line(number: int, value: Any, where: str) -> int | None:
    """number, None for -1. Raises RecordError for other negative numbers and for those above MAX_LABEL."""
    if not -1 <= number <= MAX_LABEL:
        raise RecordError(CAUSE, f"{where} is {_shown(value)}, not in 0 to 2^31 - 1 (-1: no label)")
    return number if number >= 0 else None


def _int(digits: str) -> int:
    return int(digits) if len(digits) < 100 else MAX_LABEL + 1  # Python refuses to convert thousands of digits


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:40]}... ({type(value).__name__})" if len(text) > 40 else f"{text} ({type(value).__name__})"
