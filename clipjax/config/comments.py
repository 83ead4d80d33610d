"""The comments beside the fields of a configuration's dataclasses, for `clipjax config`."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap


@functools.cache
def field_comments(cls: type) -> dict[str, str]:
    """{field: the comment at the end of its line, or in the lines above it}, those of the base classes included."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        comments |= _own_comments(base)
    return comments


def _own_comments(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except OSError:  # defined where no source is kept, such as in a notebook
        return {}
    lines, comments = source.split("\n"), {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 2
            while above >= 0 and lines[above].strip().startswith("#"):
                above -= 1
            beside = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
            text = [*lines[above + 1 : node.lineno - 1], *([beside] if beside.startswith("#") else [])]
            if text:
                comments[node.target.id] = " ".join(line.strip().lstrip("#").strip() for line in text)
    return comments
