"""JSON that somebody else may have written: bounded, and refused where its meaning is in doubt; JSON lines."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from typing import Any

from absl import logging

from clipjax import storage
from clipjax.files import read_text
from clipjax.storage import AnyPath


def read_json_object(path: str | AnyPath) -> dict[str, Any]:
    """The object in a file; {} where there is none: no file, or one that cannot be read or holds something else.

    Raises StorageError where a bucket does not let itself be read, which says nothing about the file.
    """
    try:
        document = parse_json(storage.as_path(path).read_text(encoding="utf-8"))
    except storage.StorageError:
        raise
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_json_lines(path: str | AnyPath, keys: Collection[str] = ()) -> list[dict[str, Any]]:
    """The objects in order; [] without the file. Lines that are torn, or hold no object with these keys, are left out.

    One warning names the lines that were left out, in the first reading that finds them.
    """
    path = storage.as_path(path)
    lines, bad = [], []
    data = path.read_bytes() if path.is_file() else b""
    for number, text in enumerate(data.split(b"\n"), 1):
        try:
            line = parse_json(text.decode("utf-8")) if text.strip() else None
        except ValueError:
            line = False
        if isinstance(line, dict) and line.keys() >= set(keys):
            lines.append(line)
        elif line is not None:
            bad.append(number)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        which = f"line {shown} is" if len(bad) == 1 else f"lines {shown} are"
        _warn_once(f"{path}: {which} left out: torn, not UTF-8, or not one of this file's lines.")
    return lines


def parse_json(text: str | bytes, limit: int = 0) -> Any:
    """The value of a JSON text. limit: its characters or bytes; 0: MAX_JSON.

    Raises ValueError for what is not JSON, for JSON above the limit, nested deeper than Python reads, or with a field
    that is there twice in one object. Values take up to thirty times the memory of their text.
    """
    limit = limit or MAX_JSON
    if len(text) > limit:
        raise ValueError(f"it has {len(text):,} bytes, the limit is {limit:,}")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | AnyPath, limit: int = 0) -> Any:
    """The value of a JSON file, in an encoding of read_text. Raises ValueError as parse_json and read_text do."""
    return parse_json(read_text(path, limit or MAX_JSON), limit)


MAX_JSON = 16 << 20  # bytes of a JSON text, which takes up to thirty times as much memory


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning("%s", message)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"the field {twice[:100]!r} is there twice")
    return made
