"""The page docs/api.md, from the docstrings.

The page has what each namespace of `clipjax` lists in `__all__`, and nothing else. griffe reads signatures, fields and
docstrings from the source.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType

import griffe

import clipjax

ROOT = Path(__file__).parent.parent
HEAD = """# API

Every public function and class, by namespace, as `import clipjax` offers them. This page is written by
`python -m docs.generate` from the docstrings. Start with `clipjax.load`; [extending.md](extending.md) shows how to
add a loss, tower, source, evaluator or optimizer of your own.
"""


def api_page() -> str:
    """The whole page as Markdown."""
    source = griffe.load("clipjax", search_paths=[ROOT])
    namespaces = {name: importlib.import_module(f"clipjax.{name}") for name in clipjax.__all__ if name != "load"}
    contents = [f"- [`clipjax.{name}`](#clipjax{name}): {_first_line(module)}" for name, module in namespaces.items()]
    sections = ["## clipjax", "", _entry("clipjax", "load", source["load"])]
    for namespace, module in namespaces.items():
        path = f"clipjax.{namespace}"
        entries = [
            _entry(path, public, _definition(source, module, public))
            for public in sorted(module.__all__, key=str.lower)
        ]
        sections += [f"## {path}", "", _first_line(module), "", *entries]
    return "\n".join([HEAD, *contents, "", *sections])


def _definition(source: griffe.Module, module: ModuleType, name: str) -> griffe.Object:
    """Where a public name is defined, as griffe read it. Raises LookupError for one that cannot be documented."""
    value = getattr(module, name)
    where = getattr(value, "__module__", "")
    room = [where] if where.startswith("clipjax") else sorted(m for m in sys.modules if m.startswith(module.__name__))
    for candidate in room:
        path = candidate.partition(".")[2]
        members = (source[path] if path else source).members
        if name in members and not members[name].is_alias and getattr(sys.modules[candidate], name) is value:
            return members[name]
    raise LookupError(f"{module.__name__}.{name} is listed in __all__ and defined nowhere in the package.")


def _entry(path: str, name: str, found: griffe.Object) -> str:
    lines = [f"### {path}.{name}", ""]
    if found.is_function:
        lines += ["```python", _signature(name, found), "```", ""]
    elif found.is_class:
        lines += ["```python", _fields(name, found), "```", ""]
    elif found.is_attribute:
        lines += [f"`{name}: {found.annotation}`" if found.annotation else f"`{name}`", ""]
    if found.docstring:
        summary, _, rest = inspect.cleandoc(found.docstring.value).partition("\n\n")
        lines += [summary, ""] if "\n    " not in summary else ["```text", summary, "```", ""]
        lines += ["```text", rest.strip("\n"), "```", ""] if rest else []
    return "\n".join(lines)


def _signature(name: str, function: griffe.Function) -> str:
    parameters, starred = [], False
    for parameter in function.parameters:
        if parameter.kind is griffe.ParameterKind.keyword_only and not starred:
            parameters.append("*")
            starred = True
        if parameter.kind is griffe.ParameterKind.var_positional:
            starred = True
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(parameter.kind.value, "")
        text = stars + parameter.name + (f": {parameter.annotation}" if parameter.annotation else "")
        if parameter.default is not None and not stars:
            text += f" = {parameter.default}" if parameter.annotation else f"={parameter.default}"
        parameters.append(text)
    returns = f" -> {function.returns}" if function.returns else ""
    line = f"{name}({', '.join(parameters)}){returns}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){returns}"


def _fields(name: str, cls: griffe.Class) -> str:
    """A class as its fields and public methods."""
    bases = ", ".join(str(base) for base in cls.bases)
    lines = [f"class {name}({bases}):" if bases else f"class {name}:"]
    for member in cls.members.values():
        if member.name.startswith("_") or member.is_alias:
            continue
        if member.is_attribute and member.annotation:
            value = f" = {member.value}" if member.value is not None else ""
            lines.append(f"    {member.name}: {member.annotation}{value}")
        elif member.is_function:
            lines.append("    def " + _signature(member.name, member).replace("\n", "\n    "))
    return "\n".join(lines if len(lines) > 1 else [lines[0].rstrip(":")])


def _first_line(module: ModuleType) -> str:
    """The first sentence or line of a docstring."""
    return inspect.cleandoc(module.__doc__).split("\n\n")[0].replace("\n", " ")
