"""A sweep's folder: the runs of a grid of settings, each a workdir of its own, and sweep.json, which lists them.

sweeps/x/sweep.json
sweeps/x/loss=sigmoid,global_batch_size=256/seed0/     a run's workdir, with train.log
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from clipjax.config import ConfigError, ExperimentConfig, from_json_dict, require
from clipjax.files import write_text
from clipjax.json_files import read_json
from clipjax.runs.steps import checkpoints_of, whole_steps
from clipjax.storage import as_path

FILE, LOCK, LOG = "sweep.json", "sweep.lock", "train.log"
LONGEST_NAME = 120  # characters of a folder's name

Status = Literal["waiting", "running", "finished", "failed", "stopped", "printed", "submitted"]


@dataclasses.dataclass
class Cell:
    """One run of a sweep: one value for each varied field, and a seed."""

    name: str  # of its settings, such as "loss=sigmoid,global_batch_size=256": the folder of its seeds
    seed: int  # config.seed
    set: dict[str, str]  # varied field -> its value as --config.FIELD=... takes it; without fields that are left out
    values: dict[str, Any]  # varied field -> its value
    status: Status = "waiting"  # when sweep.json was written
    seconds: float = 0.0  # that its processes took, over all tries; 0: none has ended; -1: some were not measured
    error: str = ""  # the last line of a failed try
    job: str = ""  # Slurm's number of the job

    @property
    def path(self) -> str:
        """The workdir, relative to the sweep's folder."""
        return f"{self.name}/seed{self.seed}"


@dataclasses.dataclass
class Sweep:
    """What sweep.json holds."""

    config: str  # the experiment file, as --config gives it
    overrides: list[str]  # of fields of all cells, as the command line has them
    fields: list[str]  # the varied fields
    cells: list[Cell]

    @property
    def seeds(self) -> list[int]:
        return sorted({cell.seed for cell in self.cells})

    @property
    def names(self) -> list[str]:
        """The names of the settings, each once, in order."""
        return list(dict.fromkeys(cell.name for cell in self.cells))


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder is a sweep's."""
    return (as_path(folder) / FILE).is_file()


def read_sweep(folder: str | Path) -> Sweep:
    """Raises ConfigError for a folder without sweep.json, or with one that is damaged."""
    path = as_path(folder) / FILE
    require(path.is_file(), f"{folder} is not a sweep's folder: it has no {FILE}.")
    try:
        document = read_json(path)
        cells = [Cell(**{key: cell[key] for key in cell if key != "workdir"}) for cell in document["cells"]]
        return Sweep(document["config"], document["overrides"], document["fields"], cells)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Put back a copy of it; or remove it, and "
            "clipjax sweep makes it again from its command, and goes on with the cells' folders."
        ) from error


def write_sweep(folder: str | Path, sweep: Sweep) -> None:
    """Writes folder/sweep.json whole. `grid` and `seeds` are for readers; the cells have all."""
    document = {
        "config": sweep.config,
        "overrides": sweep.overrides,
        "fields": sweep.fields,
        "grid": {field: _each_once(cell.values.get(field) for cell in sweep.cells) for field in sweep.fields},
        "seeds": sweep.seeds,
        "cells": [{"workdir": cell.path, **dataclasses.asdict(cell)} for cell in sweep.cells],
    }
    write_text(as_path(folder) / FILE, json.dumps(document, indent=1) + "\n")


def trained_config(workdir: str | Path) -> ExperimentConfig | None:
    """The configuration that a run was last started with; None for a workdir in which none has begun."""
    path = as_path(workdir) / "config.json"
    if not path.is_file():
        return None
    try:
        return from_json_dict(read_json(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not a configuration of this version of clipjax: {error}") from error


def saved_step(workdir: str | Path) -> int:
    """The step of the newest checkpoint; 0 without one. Checksums are not verified."""
    return max(whole_steps(checkpoints_of(workdir)), default=0)


def cell_name(values: Mapping[str, Any], fields: Collection[str], taken: Collection[str] = ()) -> str:
    """The folder's name for one setting: "loss=sigmoid,global_batch_size=256"; "default" where nothing is varied.

    A field's name is as short as keeps it apart from the other fields. Characters that a shell or a file system treats
    specially become "-". taken: names of other settings, which the name then does not repeat.
    """
    shown = [f"{short}={_as_name(values[field])}" for field, short in short_names(fields).items() if field in values]
    name = ",".join(shown) or "default"
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{zlib.crc32(name.encode()):08x}"
    tries = (name, *(f"{name}-{number}" for number in range(2, 10_000)))
    return next(candidate for candidate in tries if candidate not in taken)


def short_names(fields: Collection[str]) -> dict[str, str]:
    """{dotted field: its last part, or as many parts as keep it apart from the others}; "loss.name" is "loss"."""
    shown = {field: field.removesuffix(".name").split(".") for field in fields}
    result = {}
    for field, parts in shown.items():
        others = [other for key, other in shown.items() if key != field]
        count = next((n for n in range(1, len(parts)) if all(parts[-n:] != o[-n:] for o in others)), len(parts))
        result[field] = ".".join(parts[-count:])
    return result


def value_text(value: Any) -> str:
    """A value as tables and names show it: 0.001, (0.5, 1), none, true; text as it is."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return f"({', '.join(map(value_text, value))})" if isinstance(value, list | tuple) else str(value)


def _as_name(value: Any) -> str:
    text = re.sub(r"[^A-Za-z0-9.+_-]+", "-", value_text(value)).strip("-") if not isinstance(value, float) else None
    return (value_text(value) if text is None else text) or "empty"


def _each_once(values: Any) -> list[Any]:
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
