"""Captions and labels in a row of a table, a JSON document or a text file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from clipjax.config import nearest
from clipjax.data.records import MAX_CAPTION, RecordError
from clipjax.files import TextFileError, decode_text, split_lines


def captions(fields: Mapping[str, Any], keys: str) -> list[str]:
    """The texts under the keys, which are joined by commas, stripped. "meta/text" is a field inside another.

    Empty texts and fields without a text are left out. Raises RecordError for a list of texts and something else, and
    for a text that is too long or that no tokenizer can take.
    """
    values = [pick(fields, key.strip()) for key in keys.split(",")]
    return [text for value in values for text in _checked(_all_texts(value))]


def pick(fields: Any, key: str) -> Any:
    """fields["meta"]["text"] for the key "meta/text", None where it is missing; of a list, that of its elements.

    A field whose own name is "meta/text" comes first.
    """
    if isinstance(fields, Mapping) and key in fields:
        return fields[key]
    for name in key.split("/"):
        if isinstance(fields, list):
            fields = [field.get(name) for field in fields if isinstance(field, Mapping)]
        else:
            fields = fields.get(name) if isinstance(fields, Mapping) else None
    return fields


def has_field(fields: Any, key: str) -> bool:
    """Whether `pick` finds a field, even one without a value."""
    if isinstance(fields, list):
        return any(has_field(field, key) for field in fields)
    if not isinstance(fields, Mapping) or key in fields:
        return isinstance(fields, Mapping)
    outer, slash, inner = key.partition("/")
    return bool(slash) and has_field(fields.get(outer), inner)


def texts_of(value: Any) -> list[str]:
    """A text, or the texts of a list, as they are; values of other types are left out.

    Bytes are UTF-8: Spark and others write Parquet's texts as binary. Raises RecordError where they are not.
    """
    values = value if isinstance(value, list) else [value]
    return [_text(text) for text in values if isinstance(text, str | bytes)]


def not_texts(value: Any) -> list[Any]:
    """What `texts_of` leaves out although it is not null: a number, an object, or such a value in a list."""
    values = value if isinstance(value, list) else [value]
    return [other for other in values if other is not None and not isinstance(other, str | bytes)]


def decode(data: bytes, where: str) -> str:
    """The text of a caption file (files.decode_text). Raises RecordError above MAX_CAPTION, or if not Unicode."""
    if len(data) > MAX_CAPTION:
        raise RecordError("caption too long", f"{where} has {len(data)} bytes, the limit is {MAX_CAPTION}")
    try:
        return decode_text(data, where)
    except TextFileError as error:
        raise RecordError("not UTF-8", str(error)) from error


def caption_lines(text: str) -> list[str]:
    """The lines of a caption file, stripped, each once, without empty ones."""
    return list(dict.fromkeys(line.strip() for line in split_lines(text) if line.strip()))


def class_number(value: int, where: str) -> int:
    """value, where it fits a batch's int32 (-1: none). Raises RecordError."""
    if not -1 <= value < 2**31:
        raise RecordError("corrupt record", f"{where} is {value}, not in -1 to 2^31 - 1")
    return value


def missing_column(where: object, name: str, columns: Collection[str], options: str, similar: bool = True) -> str:
    """The message for a column that is not there. options: what to set instead. similar: propose a similar name."""
    known = ", ".join(f"'{column}'" for column in columns) or "none"
    hint = nearest(name, columns).split(" Known")[0] if columns and similar else ""
    return f"{where} has no column '{name}'. It has {known}.{hint} Set {options}."


def _text(value: str | bytes) -> str:
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", str(error)) from error


def _all_texts(value: Any) -> list[str]:
    """texts_of a value, unless it is a list of texts and something else than null."""
    texts, others = texts_of(value), not_texts(value)
    if texts and others:
        raise RecordError("caption not text", f"{others[0]!r:.60} stands among the texts {texts!r:.80}")
    return texts


def _checked(texts: list[str]) -> list[str]:
    texts = [text.strip() for text in texts]
    for text in texts:
        if len(text) > MAX_CAPTION:
            raise RecordError("caption too long", f"{len(text)} characters, the limit is {MAX_CAPTION}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # half a surrogate pair: JSON can hold one, no tokenizer takes it
            raise RecordError("not UTF-8", str(error)) from error
    return [text for text in texts if text]
