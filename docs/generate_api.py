"""Writes docs/api.md from the docstrings: python docs/generate_api.py [--check].

Read with griffe, which looks at the source and imports nothing. The page has what each namespace of `clipjax` lists in
`__all__`, and nothing else.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
HEAD = """# API

Every public function and class, by namespace, as `import clipjax` offers them. This page is written by
`python docs/generate_api.py` from the docstrings. Start with `clipjax.load`; [extending.md](extending.md) shows how to
add a loss, tower, source, evaluator or optimiser of your own.
"""


def api_page() -> str:
    """The whole page as Markdown."""
    package = griffe.load("clipjax", search_paths=[ROOT])
    namespaces = [name for name in package.exports if package[name].is_module]
    contents = [f"- [`clipjax.{name}`](#clipjax{name}): {_summary(package[name])}" for name in namespaces]
    own = [name for name in package.exports if name not in namespaces]
    sections = [_section("clipjax", package, own)]
    sections += [_section(f"clipjax.{name}", package[name], package[name].exports or []) for name in namespaces]
    return "\n".join([HEAD, *contents, "", *sections])


def _section(path: str, module: griffe.Module, names: list[str]) -> str:
    entries = [_entry(path, name, module[name]) for name in sorted(names, key=str.lower)]
    return "\n".join([f"## {path}", "", _summary(module), "", *entries])


def _entry(path: str, name: str, found: griffe.Object | griffe.Alias) -> str:
    found = found.final_target if found.is_alias else found
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


def _summary(module: griffe.Object) -> str:
    """The first sentence or line of a docstring."""
    return inspect.cleandoc(module.docstring.value).split("\n\n")[0].replace("\n", " ") if module.docstring else ""


def main() -> None:
    page = api_page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page else f"{PAGE} is not up to date: run python {__file__}")
    PAGE.write_text(page, encoding="utf-8")
    print(f"Wrote {PAGE}")


if __name__ == "__main__":
    main()
