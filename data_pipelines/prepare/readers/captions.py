"""The captions in columns of a table or fields of a JSON document, as they are: the step "captions" cleans them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clipjax.data.sources.fields import not_texts, pick, texts_of
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.types import SHOWN, Note
from data_pipelines.tables import NOT_TEXT


def captions(fields: Mapping[str, Any], key: str, options: Options, note: Note) -> list[str]:
    """The texts under --caption_columns; notes the first value that is neither text nor null, and keeps the texts.

    Raises RecordError for bytes that are not UTF-8.
    """
    values = [pick(fields, column) for column in options.caption_columns]
    others = [other for value in values for other in not_texts(value)]
    if others:
        note(NOT_TEXT, key, json.dumps(others[0], default=str)[:SHOWN])
    return [text for value in values for text in texts_of(value)]
