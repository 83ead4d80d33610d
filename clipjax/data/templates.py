"""Prompt templates: where the class name goes, and a file with one template a line.

"a photo of a {}."       ours; other braces stay as they are
"a photo of a {c}."      CLIP_benchmark's, as Python's format reads it: "{{" and "}}" are single braces
"""

from __future__ import annotations

import re
from pathlib import Path

from clipjax.config.errors import shown
from clipjax.files import TextFileError, read_text, split_lines

TEMPLATES_FILE = "zeroshot_classification_templates.txt"
_TOKEN = re.compile(r"\{\{|\}\}|\{c\}|\{\}")
_FIELD = re.compile(r"\{\s*\w*\s*\}")


class TemplateError(ValueError):
    """A template that cannot be filled; the message quotes it."""


def pieces_of(template: str) -> list[str]:
    """The texts between the places for the class name: name.join(pieces) is the prompt, and there are at least two.

    Raises TemplateError for a template with no place, and for one with both {} and {c}.
    """
    tokens = _TOKEN.findall(template)
    if "{c}" not in tokens:
        pieces = template.split("{}")
        if len(pieces) > 1:
            return pieces
        field = _FIELD.search(template)
        cure = f"; write {{}} instead of {field[0]}" if field and len(field[0]) < 40 else ""
        raise TemplateError(
            f"Template {shown(template)} has no {{}} or {{c}} for the class name{cure}; every class would get the same "
            "prompt."
        )
    if "{}" in tokens:
        raise TemplateError(f"Template {shown(template)} has both {{}} and {{c}} for the class name; use one of them.")
    pieces, start = [""], 0
    for token in _TOKEN.finditer(template):
        pieces[-1] += template[start : token.start()]
        if token[0] == "{c}":
            pieces.append("")
        else:
            pieces[-1] += token[0][0]
        start = token.end()
    pieces[-1] += template[start:]
    return pieces


def read_template_lines(path: str | Path) -> tuple[str, ...]:
    """The templates of a text file, one a line, without the blanks around them; empty lines are left out.

    Raises TextFileError, naming the file and the line, for a template that cannot be filled, for an empty file, and as
    clipjax.files.read_text does; OSError for a file that cannot be read.
    """
    templates = []
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if template := line.strip():
            try:
                pieces_of(template)
            except TemplateError as error:
                raise TextFileError(f"{path}, line {number}: {error}") from error
            templates.append(template)
    if not templates:
        raise TextFileError(f"{path} is empty; expected one template a line, such as 'a photo of a {{c}}.'")
    return tuple(templates)
