"""Which runs are one setting that was trained with several seeds, and what else the settings differ in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.config import declared, differences, flat, require
from clipjax.config.fields import Declaration
from clipjax.runs.record import RunRecord
from clipjax.runs.sweep import short_names, value_text

MOST_COLUMNS = 4  # varied fields that name a setting; runs that differ in more are named by their folders


def group_runs(records: Sequence[RunRecord]) -> tuple[tuple[str, ...], dict[str, list[RunRecord]]]:
    """(the varied fields, {name: the runs of one setting}), in the records' order.

    Fields that their sweeps vary come first, then all others that differ and affect results, or name what is trained
    on. A part's own options, which other runs do not have, are no fields of their own where the part's name already
    tells the runs apart.
    """
    shown_values = [flat(record.config) for record in records]
    flats = [_compared(record) for record in records]
    roles = declared(*(record.config for record in records))
    swept = list(dict.fromkeys(field for record in records for field in record.fields))
    varied = [
        name
        for name in sorted({name for values in flats for name in values})
        if name != "seed"
        and name not in swept
        and (roles[name].role != "runtime" or _names_data(name))
        and name != "data.decoder"  # resolved on each machine; see the notes
        and any(values.get(name) != flats[0].get(name) for values in flats)
    ]
    everywhere = [name for name in varied if all(name in values for values in flats)]
    groups_of = lambda fields: [_key(values, fields) for values in flats]  # noqa: E731
    fields = swept + everywhere
    if len(set(groups_of(fields))) < len(set(groups_of(swept + varied))):
        fields = swept + varied
    keys = groups_of(fields)
    short = short_names(fields)
    by_key: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        by_key.setdefault(key, []).append(place)
    named = len(fields) <= MOST_COLUMNS
    groups = {}
    for places in by_key.values():
        values = shown_values[places[0]]
        shown = [f"{short[field]}={value_text(values[field])}" for field in fields if field in values]
        name = (", ".join(shown) or "all runs") if named else records[places[0]].path
        groups[name] = [records[place] for place in places]
    return tuple(fields) if named else (), groups


def choose_baseline(wanted: str, groups: Mapping[str, list[RunRecord]], fields: Sequence[str]) -> str:
    """The name of the group that --baseline means; "": the first. Raises ConfigError."""
    if not wanted:
        return next(iter(groups))
    short = short_names(fields)
    found = []
    for name, runs in groups.items():
        values = flat(runs[0].config)
        texts = {field: value_text(values[field]) for field in fields if field in values}
        pieces = {piece for f, text in texts.items() for piece in (text, f"{f}={text}", f"{short[f]}={text}")}
        asked = {piece.strip() for piece in wanted.split(",")}
        folders = {record.path.rstrip("/") for record in runs}
        folders |= {folder.rpartition("/")[0] for folder in folders}
        if wanted == name or asked <= pieces or any(("/" + f).endswith("/" + wanted.rstrip("/")) for f in folders):
            found.append(name)
    listed = "; ".join(groups)
    require(len(found) > 0, f"--baseline={wanted} is none of the settings. Expected one of: {listed}.")
    require(
        len(found) == 1, f"--baseline={wanted} fits several settings: {'; '.join(found)}. Name one of them in full."
    )
    return found[0]


def notes_on_configs(groups: Mapping[str, list[RunRecord]], base: str, fields: Sequence[str]) -> list[str]:
    """What the runs differ in that changes what is measured, or what they read, and that the columns do not show."""
    first = groups[base][0]
    notes: dict[str, list[str]] = {}
    for runs in groups.values():
        for record in runs:
            for field, (old, new) in _differences(first, record).items():
                kind = kind_of(field)
                if kind and field not in fields:
                    notes.setdefault(f"{kind}: config.{field} is {old!r} in {first.path}, {new!r}", []).append(
                        record.path
                    )
    return [f"{note} in {paths[0]}{f' and {len(paths) - 1} more' * (len(paths) > 1)}." for note, paths in notes.items()]


def kind_of(field: str) -> str:
    """What a difference in a field means for what is read or measured; "" for other fields."""
    if field.startswith("eval.evaluators."):
        return "The evaluators differ, so the metrics are not the same measure"
    if field.startswith("tokenizer.path"):
        return "The tokenizers differ"
    if _names_data(field):
        return "The training data differ"
    return "The images are decoded by different programs" if field == "data.decoder" else ""


def changes_of(base: RunRecord, record: RunRecord, fields: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """{field: (base's value, record's)} of everything that differs beyond the varied fields and the seed."""
    found = _differences(base, record)
    return {name: change for name, change in found.items() if name != "seed" and name not in fields}


def _names_data(field: str) -> bool:
    """Whether a field says what is trained on: sources, and the tokenizer that makes ids of their texts."""
    return field.startswith(("data.train.", "data.mixture.", "tokenizer.path"))


def _compared(record: RunRecord) -> dict[str, Any]:
    """flat of a run's configuration, with one spelling of each path of data.

    A run's own files need none: config.json names its copies after their content.
    """
    roles = declared(record.config)
    return {name: _one_spelling(roles[name], value) for name, value in flat(record.config).items()}


def _one_spelling(declaration: Declaration, value: Any) -> Any:
    local = declaration.path == "data" and value and "://" not in value
    return os.path.abspath(value) if local else value


def _differences(one: RunRecord, other: RunRecord) -> dict[str, tuple[Any, Any]]:
    """{field: (one's value, other's)} of every field that differs in more than the spelling of a path."""
    found = differences(_compared(one), _compared(other))
    return {name: pair for name, pair in differences(flat(one.config), flat(other.config)).items() if name in found}


def _key(values: Mapping[str, Any], fields: Sequence[str]) -> str:
    return json.dumps([[field, values[field]] for field in fields if field in values])
