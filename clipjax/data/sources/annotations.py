"""JSON and JSON Lines files of annotations, read whole. An error says which file, record and field it is about.

for row in read_rows("swap_obj.json"):
    row.text("caption")      # or a ManifestError: the file, the record's key, the field, what is there
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.data.records import ManifestError
from clipjax.data.sources.fields import MAX_CAPTION
from clipjax.files import TextFileError, read_text, split_lines

LONGEST = 256 << 20  # bytes of a file, which is read whole; COCO's captions have 91 MB
SHOWN = 60  # characters of a value in an error


class AnnotationRow(NamedTuple):
    """One record of a file of annotations."""

    file: str
    key: str  # in the file's object; or the number in its list, from 0; or the line of a .jsonl, from 1
    position: int  # in the file, from 0
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The file and the record's key, for messages."""
        return f"{self.file}, record '{self.key}'"

    def error(self, field: str, found: Any, expected: str) -> ManifestError:
        """What is wrong with a field."""
        return ManifestError(f"{self.where}, field '{field}': found {shown(found)}, expected {expected}.")

    def value(self, field: str) -> Any:
        """The value of a field. Raises ManifestError where the record has no such field."""
        if field not in self.fields:
            raise ManifestError(f"{self.where} has no field '{field}'; it has {', '.join(self.fields) or 'no field'}.")
        return self.fields[field]

    def text(self, field: str) -> str:
        """A field's text, stripped. Raises ManifestError."""
        return self.check_text(field, self.value(field))

    def texts(self, field: str) -> list[str]:
        """The text of a field, or the texts of a list that is not empty. Raises ManifestError."""
        value = self.value(field)
        if isinstance(value, list):
            if not value:
                raise self.error(field, value, "at least one text")
            return [self.check_text(f"{field}[{number}]", text) for number, text in enumerate(value)]
        return [self.check_text(field, value)]

    def check_text(self, field: str, value: Any) -> str:
        """The value, stripped, if it is a text that a tokenizer can take. Raises ManifestError."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, value, "a text that is not empty")
        if len(value) > MAX_CAPTION:
            raise self.error(field, value, f"a caption of at most {MAX_CAPTION} characters, not {len(value)}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # half a surrogate pair: JSON can hold one, no tokenizer takes it
            raise self.error(field, value, "text without half a surrogate pair") from error
        return value.strip()

    def number(self, field: str) -> float:
        """A field's number, which is finite. Raises ManifestError."""
        value = self.value(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(field, value, "a number")
        return value


def read_rows(path: str | Path) -> list[AnnotationRow]:
    """The records of a .json file, an object of records by their keys or a list of records, or of a .jsonl file.

    Raises ManifestError for a file that cannot be read or holds no record, for a key that is there twice in one object
    (JSON readers would keep the last value without a word), and for a record that is not an object.
    """
    path = Path(path)
    if path.suffix.lower() == ".jsonl":
        lines = [(str(number), line) for number, line in enumerate(_lines(path), 1) if line.strip()]
        values = [(key, parse_json(line, f"{path}, line {key}")) for key, line in lines]
    else:
        values = _records(read_json(path), path)
    if not values:
        raise ManifestError(f"{path} has no records.")
    for key, fields in values:
        if not isinstance(fields, dict):
            raise ManifestError(
                f"{path}, record '{key}': found {shown(fields)}, expected an object with the record's fields."
            )
    return [AnnotationRow(str(path), key, position, fields) for position, (key, fields) in enumerate(values)]


def read_json(path: str | Path) -> Any:
    """The value that a JSON file holds. Raises ManifestError as read_rows does."""
    return parse_json(_text(Path(path)), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises ManifestError for other text, and for a key that one object has twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = next(name for name, count in collections.Counter(name for name, _ in pairs).items() if count > 1)
            found = " and ".join(shown(value) for name, value in pairs if name == twice)
            raise ManifestError(f"{where}: the key '{twice}' is there more than once, with {found}. Keep one of them.")
        return made

    if not text.strip():
        raise ManifestError(f"{where} is empty, expected JSON.")
    try:
        return json.loads(text, object_pairs_hook=once)
    except ManifestError:
        raise
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is not JSON: {error}.") from error


def shown(value: Any) -> str:
    """A value as an error shows it: JSON, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        if not value:
            return f"{kind} without elements"
        return f"{kind} of {len(value)}, {_cut(repr(value))}"
    return _cut(f"{value!r}")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _records(value: Any, path: Path) -> Sequence[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list):
        return [(str(number), fields) for number, fields in enumerate(value)]
    raise ManifestError(f"{path}: found {shown(value)}, expected an object of records or a list of records.")


def _lines(path: Path) -> list[str]:
    return split_lines(_text(path))


def _text(path: Path) -> str:
    try:
        return read_text(path, LONGEST)
    except (OSError, TextFileError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
