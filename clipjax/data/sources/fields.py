"""Captions and labels out of what a row, a JSON document or a text file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.data.records import RecordError

MAX_CAPTION = 1 << 20  # bytes; a text tower reads some hundred


def captions(fields: Mapping[str, Any], keys: str) -> list[str]:
    """The texts under the keys, which are joined by commas; "meta/text" is a field inside another, of each where that
    is a list. Empty ones and what is no text are left out. Raises RecordError."""
    return [text for key in keys.split(",") for text in _texts(pick(fields, key.strip()))]


def pick(fields: Any, key: str) -> Any:
    """fields["meta"]["text"] for the key "meta/text"; None where there is none. Of a list: its elements'."""
    for name in key.split("/"):
        if isinstance(fields, list):
            fields = [field.get(name) for field in fields if isinstance(field, Mapping)]
        else:
            fields = fields.get(name) if isinstance(fields, Mapping) else None
    return fields


def decode(data: bytes, where: str) -> str:
    """UTF-8 without its byte order mark. Raises RecordError for what is too long for a caption or no UTF-8."""
    if len(data) > MAX_CAPTION:
        raise RecordError("caption too long", f"{where} has {len(data)} bytes, the limit is {MAX_CAPTION}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", f"{where}: {error}") from error


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    texts = [text.strip() for text in values if isinstance(text, str)]
    for text in texts:
        if len(text) > MAX_CAPTION:
            raise RecordError("caption too long", f"{len(text)} characters, the limit is {MAX_CAPTION}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can hold and no tokenizer takes
            raise RecordError("not UTF-8", str(error)) from error
    return [text for text in texts if text]
