"""Prints every field of an experiment: its value, its default where that differs, and what it means.

    clipjax config --config=experiments/quickstart.py
    clipjax config --config=experiments/quickstart.py --changed
    clipjax config --config=experiments/emoji.py --config.loss.name=cyclip --only=loss,optimizer

Any field shown can be set: --config.optimizer.learning_rate=1e-3. Nothing is run, and no data are read.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from absl import flags

from clipjax.commands import flags as cli
from clipjax.config import EvaluationConfig, ExperimentConfig, require
from clipjax.config.comments import field_comments
from clipjax.config.fields import metadata, rows

TABLE = re.compile(r"a row of ([\w.]+)\.([A-Z_]+)")  # in a comment: the table of a field's choices


class Line(NamedTuple):
    """One field of an experiment."""

    name: str  # dotted, as --config.NAME sets it
    value: Any
    default: Any
    meaning: str


def lines(config: Any, default: Any, prefix: str = "") -> Iterator[Line]:
    """Every field of a configuration dataclass and of the sections below it, in the order of their definition.

    default: the dataclass with every field at its default. A section that a name chooses is compared with the defaults
    of the part it names.
    """
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value, base = prefix + field.name, getattr(config, field.name), getattr(default, field.name, None)
        table = metadata(type(config), field.name).get("table", "")
        if dataclasses.is_dataclass(value):
            yield from _section(value, base, name, table)
        elif isinstance(value, Mapping) and value:
            for key, section in value.items():
                yield from _section(section, None, f"{name}.{key}", table)
        else:
            comment = field_comments(type(config)).get(field.name, "")
            comment = TABLE.sub(lambda match: " | ".join(rows(f"{match[1]}:{match[2]}")), comment)
            choices = typing.get_args(kinds[field.name]) if typing.get_origin(kinds[field.name]) is Literal else ()
            yield Line(name, value, base, "; ".join(filter(None, (" | ".join(choices), comment))))


def show(
    config: ExperimentConfig | EvaluationConfig, *, only: tuple[str, ...] = (), changed: bool = False, width: int = 120
) -> str:
    """The fields as a table; a star marks those that differ from their defaults.

    only: the sections to show, () for all; changed: only fields with a star. Raises ConfigError for a section that does
    not exist.
    """
    every = list(lines(config, type(config)()))
    sections = sorted({line.name.split(".")[0] for line in every})
    for section in only:
        require(
            any(_is_in(line.name, section) for line in every),
            f"--only={section}: no such section or field. Expected {', '.join(sections)}.",
        )
    chosen = [
        line
        for line in every
        if (line.value != line.default or not changed) and (not only or any(_is_in(line.name, part) for part in only))
    ]
    cells = [("  field", "value", "default", "meaning")]
    for line in chosen:
        star = "* " if line.value != line.default else "  "
        cells.append((star + line.name, repr(line.value), repr(line.default), line.meaning))
    return "\n".join(_table(cells, width)) if chosen else "Every field has its default."


def _section(section: Any, base: Any, name: str, table: str) -> Iterator[Line]:
    """The lines of a section. If its name chooses a part, that line's default is the default part."""
    for line in lines(section, type(section)(), f"{name}."):
        if table and line.name == f"{name}.name":
            line = line._replace(default=section.name if base is None else base.name)
        yield line


def _is_in(name: str, section: str) -> bool:
    return name == section or name.startswith(section + ".")


def _table(table: list[tuple[str, ...]], width: int) -> Iterator[str]:
    """The cells in columns; the last one is wrapped, and longer cells push the rest of their row on."""
    most = (48, 18, 18)
    columns = [min(max(len(row[place]) for row in table), size) for place, size in enumerate(most)]
    start = sum(columns) + 2 * len(columns)
    for *cells, meaning in table:
        head = "  ".join(f"{cell:{size}}" for cell, size in zip(cells, columns, strict=True))
        wrapped = textwrap.wrap(meaning, max(32, width - start))
        if wrapped and len(head) <= start - 2:
            head += "  " + wrapped.pop(0)
        yield head.rstrip()
        yield from (" " * start + text for text in wrapped)


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("only", "", "Sections or fields to show, joined by commas.", flag_values=values)
        flags.DEFINE_bool("changed", False, "Only fields that differ from their defaults.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config",), evaluation=True, processes=False)
    only = tuple(filter(None, values.only.split(",")))
    width = shutil.get_terminal_size((120, 24)).columns

    def body() -> None:
        print(
            show(
                cli.experiment_of(values, evaluation=True, fetch=False), only=only, changed=values.changed, width=width
            ),
            flush=True,
        )

    try:
        cli.run_command(values, body)
    except BrokenPipeError:  # `| head` has read enough; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
