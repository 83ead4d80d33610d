"""The grid of a sweep: what --vary and --seeds say, and the configuration of every cell.

loss.name=softmax,sigmoid                                             two values
global_batch_size,optimizer.learning_rate=256:1e-3,512:2e-3           two fields together
loss.name,loss.label_smoothing=softmax:0.1,sigmoid:-                  "-": the second has no such field
"data.augment.scale=(0.5,1.0),(0.9,1.0)"                              brackets keep a tuple together
"init_from='runs/a,b',runs/c"                                         quotes keep a text together
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from clipjax.commands.flags import read_config
from clipjax.config import ConfigError, ExperimentConfig, flat, require

MOST_CELLS = 10_000
LEFT_OUT = "-"
BRACKETS = {"(": ")", "[": "]", "{": "}"}


class Axis(NamedTuple):
    """One --vary: fields that change together, and their values."""

    fields: tuple[str, ...]
    values: tuple[tuple[str | None, ...], ...]  # as --config.FIELD=... takes them; None: the field is left out


class Setting(NamedTuple):
    """One point of the grid, which every seed trains."""

    set: dict[str, str]  # varied field -> its value as --config.FIELD=... takes it
    values: dict[str, Any]  # varied field -> its value, as in JSON
    config: ExperimentConfig  # with the experiment's own seed


def parse_axes(texts: Sequence[str], overrides: Sequence[str]) -> list[Axis]:
    """Each --vary as an Axis. overrides: those of all cells, which may not set a varied field. Raises ConfigError."""
    axes = [_parse_axis(text) for text in texts]
    fixed = {arg.lstrip("-").removeprefix("no").removeprefix("config.").partition("=")[0] for arg in overrides}
    seen: set[str] = set()
    for field in (field for axis in axes for field in axis.fields):
        require(field not in seen, f"--vary {field} is given twice; give all its values at once: --vary {field}=A,B,C.")
        require(field not in fixed, f"--vary {field} and --config.{field} contradict each other; give one of them.")
        seen.add(field)
    require("seed" not in fixed, "--config.seed is set by --seeds: --seeds=3 trains 0, 1 and 2; --seeds=7, trains 7.")
    return axes


def parse_seeds(text: str) -> list[int]:
    """ "3": 0, 1 and 2. "5,8": these, and "5,": only 5. Raises ConfigError."""
    pieces = [piece.strip() for piece in text.split(",")]
    wrong = f"--seeds={text}: expected a number of seeds, such as 3 for 0, 1 and 2, or the seeds themselves: 5,8."
    require(all(piece.isdecimal() and piece.isascii() for piece in pieces[:1] + [p for p in pieces[1:] if p]), wrong)
    if len(pieces) == 1:
        require(1 <= int(text) <= MOST_CELLS, f"--seeds={text} must be at least 1 and at most {MOST_CELLS:,}.")
        return list(range(int(text)))
    seeds = [int(piece) for piece in pieces if piece]
    require(len(set(seeds)) == len(seeds), f"--seeds={text} has a seed twice.")
    require(max(seeds) < 2**31, f"--seeds={text}: config.seed must be below 2,147,483,648.")
    return seeds


def arguments_of(file: str, overrides: Sequence[str], setting: dict[str, str], seed: int | None = None) -> list[str]:
    """What clipjax train gets for a cell, except its --workdir. file: "--config=..."."""
    varied = [f"--config.{field}={text}" for field, text in setting.items()]
    return [file, *overrides, *varied, *([] if seed is None else [f"--config.seed={seed}"])]


def build_settings(file: str, overrides: Sequence[str], axes: Sequence[Axis]) -> list[Setting]:
    """Every point of the grid, in the order of the axes' values. Raises ConfigError listing all that is wrong."""
    count = 1
    for axis in axes:
        count *= len(axis.values)
    require(count <= MOST_CELLS, f"The grid has {count:,} settings; expected at most {MOST_CELLS:,}.")
    read_config([file, *overrides])  # so that an error of the experiment itself is told once
    settings, wrong = [], {}
    for chosen in itertools.product(*(axis.values for axis in axes)):
        texts = {
            field: text
            for axis, values in zip(axes, chosen, strict=True)
            for field, text in zip(axis.fields, values, strict=True)
            if text is not None
        }
        try:
            settings.append(_build(file, overrides, texts))
        except ConfigError as error:
            wrong.setdefault(str(error), texts)
    hints = dict.fromkeys(filter(None, (_together(file, overrides, axes, texts) for texts in wrong.values())))
    if wrong:
        raise ConfigError("\n".join([f"{len(wrong)} error{'s' * (len(wrong) > 1)} in the grid:", *wrong, *hints]))
    _refuse_equal(settings)
    return settings


def _build(file: str, overrides: Sequence[str], texts: dict[str, str]) -> Setting:
    config = read_config(arguments_of(file, overrides, texts))
    all_values = flat(config)
    values = {field: all_values[field] for field in texts}
    for field, value in values.items():
        require(
            not isinstance(value, list) or texts[field][:1] in BRACKETS,
            f"--vary {field}={texts[field]}: this field holds several values; write each choice in brackets, as in "
            f'--vary "{field}=(A,B),(C,D)".',
        )
    return Setting(texts, values, config)


def _refuse_equal(settings: Sequence[Setting]) -> None:
    seen: dict[str, Setting] = {}
    for setting in settings:
        first = seen.setdefault(json.dumps(setting.values, sort_keys=True), setting)
        require(
            first is setting,
            f"--vary gives the same setting twice: {_shown(first.set)} and {_shown(setting.set)}. Leave one out.",
        )


def _together(file: str, overrides: Sequence[str], axes: Sequence[Axis], texts: dict[str, str]) -> str:
    """How to vary a field that only some of the varied parts have; "" where that is not what is wrong."""

    def builds(**more: str) -> bool:
        try:
            _build(file, overrides, more)
        except ConfigError:
            return False
        return True

    alone = {axis.fields[0]: axis for axis in axes if len(axis.fields) == 1}
    for field, axis in alone.items():
        chooser = alone.get(f"{field.rpartition('.')[0]}.name")
        if chooser is None or chooser is axis or field not in texts:
            continue
        (part,) = chooser.fields
        has = {name: builds(**{part: name, field: axis.values[0][0]}) for (name,) in chooser.values}
        if any(has.values()) and not all(has.values()):
            pairs = [
                f"{name}:{value}"
                for (name,) in chooser.values
                for value in ([v for (v,) in axis.values] if has[name] else [LEFT_OUT])
            ]
            return (
                f"Not every {part} has {field}. Vary them together, where '-' leaves a field out: "
                f'--vary "{part},{field}={",".join(pairs)}"'
            )
    return ""


def _parse_axis(text: str) -> Axis:
    names, equals, rest = text.partition("=")
    require(bool(equals), f"--vary {text}: expected FIELD=VALUE,VALUE, such as loss.name=softmax,sigmoid.")
    fields = tuple(name.strip().removeprefix("--").removeprefix("config.") for name in names.split(","))
    require(all(fields), f"--vary {text}: a field's name is empty.")
    require("seed" not in fields, f"--vary {text}: --seeds sets config.seed; use --seeds=3, or --seeds=5,8.")
    require(len(set(fields)) == len(fields), f"--vary {text} names a field twice.")
    values = []
    for piece in _split(rest, ",", text):
        parts = [_unquoted(part) for part in _split(piece, ":", text)] if len(fields) > 1 else [_unquoted(piece)]
        require(
            len(parts) == len(fields),
            f"--vary {text}: '{piece}' has {len(parts)} value(s) for the {len(fields)} fields {', '.join(fields)}; "
            "expected one of each, joined by colons. Write a value with a colon in quotes.",
        )
        require(
            "" not in [part.strip() for part in _split(piece, ":" if len(fields) > 1 else "\0", text)],
            f"--vary {text}: a value is empty. Write '' for an empty text, and none for None.",
        )
        values.append(tuple(None if len(fields) > 1 and part == LEFT_OUT else part for part in parts))
    require(len(set(values)) == len(values), f"--vary {text} gives a value twice.")
    return Axis(fields, tuple(values))


def _split(text: str, separator: str, whole: str) -> list[str]:
    """The pieces between separators that are in no brackets and no quotes."""
    pieces, piece, closing, quote, before = [], "", [], "", separator
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (before in BRACKETS or before in ",:="):
            quote = letter
        elif letter in BRACKETS:
            closing.append(BRACKETS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        if letter == separator and not quote and not closing:
            pieces.append(piece.strip())
            piece = ""
        else:
            piece += letter
        before = before if letter == " " else letter
    require(not quote and not closing, f"--vary {whole}: {quote or ''.join(closing[-1:])} is missing at the end.")
    return [*pieces, piece.strip()]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _shown(texts: dict[str, str]) -> str:
    return ", ".join(f"{field}={text}" for field, text in texts.items()) or "nothing"
