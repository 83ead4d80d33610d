"""Rewrites the generated parts of the docs: `python -m docs.generate`. A test checks that they are up to date."""

from __future__ import annotations

import collections
import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipjax.__main__ import COMMANDS, HELP_TEXTS, help_of
from clipjax.config import ExperimentConfig
from clipjax.config.fields import Declaration, metadata, rows
from docs.api_page import api_page

FOLDER = Path(__file__).parent
RESTART = "restart table"


def main() -> None:
    """Writes every generated part into its page."""
    path = FOLDER / "reliability.md"
    path.write_text(with_part(path.read_text(encoding="utf-8"), RESTART, restart_table()), encoding="utf-8")
    (FOLDER / "api.md").write_text(api_page(), encoding="utf-8")
    HELP_TEXTS.write_text(help_texts(), encoding="utf-8")


def help_texts() -> str:
    """What --help prints for each command, as JSON, so that `clipjax COMMAND --help` need not import the command."""
    return json.dumps({command: help_of(command) for command in COMMANDS}, indent=1) + "\n"


def with_part(page: str, name: str, content: str, by: str = "docs.generate") -> str:
    """The page with the text between the markers of the part `name` replaced. Raises ValueError without markers."""
    begin, end = f"<!-- {name}: made by python -m {by} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"The page has no '{begin}' ... '{end}'.")
    return f"{before}{begin}\n{content}{end}{after}"


def restart_table() -> str:
    """What a restarted run may change, from the roles that fields declare, as Markdown.

    A section is listed with what holds for most of its fields; fields to which another row applies are listed by name.
    """
    outcomes = {name: _outcome(declared) for name, _, declared in every_field() if declared is not None}
    sections = collections.defaultdict(list)
    for name in outcomes:
        sections[name.rpartition(".")[0]].append(name)
    usual = {
        section: collections.Counter(map(outcomes.get, names)).most_common(1)[0][0]
        for section, names in sections.items()
        if section
    }
    listed = collections.defaultdict(list)
    for section, names in sections.items():
        rule = usual.get(section)
        if rule and rule != _inherited(section, usual):
            listed[rule].append(section)
        for name in names:
            if outcomes[name] != rule:
                listed[outcomes[name]].append(_of_siblings(name, outcomes))
    lines = ["| another value of | a restart | because |", "| --- | --- | --- |"]
    for (does, why), names in sorted(listed.items(), key=lambda item: (item[0][0] != "is refused", item[0])):
        lines.append(f"| {', '.join(f'`{name}`' for name in dict.fromkeys(names))} | {does} | {why} |")
    return "\n".join(lines) + "\n"


def every_field(
    cls: type = ExperimentConfig, prefix: str = "", role: Any = None, tables: tuple[str, ...] = ()
) -> Iterator[tuple[str, type, Declaration | None]]:
    """(dotted name, dataclass, declaration) of every field of the configuration, those of every table's parts included.

    "*" stands for the keys of a dict of sections. The declaration is None where a field declares no role. tables: those
    that have been entered; a part inside another of the same table is left out.
    """
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        declared, kind, name = metadata(cls, field.name), kinds[field.name], prefix + field.name
        below = role or declared.get("below")
        if typing.get_origin(kind) is dict:
            kind, name = typing.get_args(kind)[1], f"{name}.*"
        if declared.get("table", "") in tables:
            continue
        if "table" in declared:
            sections = [row.config for row in rows(declared["table"]).values()]
        else:
            sections = [kind] if dataclasses.is_dataclass(kind) else []
        for section in sections:
            inside = (*tables, declared["table"]) if "table" in declared else tables
            yield from every_field(section, f"{name}.", below, inside)
        if not sections:
            own = declared.get("declaration")
            yield name, cls, Declaration(below, within=own.within if own else None) if below else own


def _inherited(section: str, usual: dict[str, Any]) -> Any:
    """What holds for most fields of the nearest section around this one."""
    while section := section.rpartition(".")[0]:
        if section in usual:
            return usual[section]
    return None


def _of_siblings(name: str, outcomes: dict[str, Any]) -> str:
    """ "model.*.dropout" for "model.image.dropout", where all of the model's sections that have it agree."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "model":
        return name
    siblings = [n for n in outcomes if n.split(".")[::2] == parts[::2] and len(n.split(".")) == 3]
    same = all(outcomes[n] == outcomes[name] for n in siblings)
    return f"{parts[0]}.*.{parts[2]}" if same and len(siblings) > 1 else name


def _outcome(declared: Declaration) -> tuple[str, str]:
    if declared.fixed:
        return "is refused", declared.fixed
    if declared.at_start:
        return "continues", "only a new run reads it"
    if declared.role == "runtime":
        return "continues", "the numbers stay the same, to within rounding"
    return "continues, and says that the curve changes", "it is part of the experiment"


if __name__ == "__main__":
    main()
