"""What a run's folder says about a finished or unfinished run, read without its weights: for tables of runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, ExperimentConfig, require
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.steps import checkpoints_of, whole_steps
from clipjax.runs.sweep import is_sweep, read_sweep, trained_config
from clipjax.storage import as_path, is_remote
from clipjax.training.state import result_names


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run's configuration, its metrics.jsonl, and which checkpoints it has."""

    path: str  # the workdir, as it was given
    config: ExperimentConfig
    lines: tuple[dict[str, Any], ...]  # of metrics.jsonl, in order
    seconds: float = 0.0  # that its processes took, where a sweep measured all of them; otherwise 0 or less
    fields: tuple[str, ...] = ()  # that its sweep varies
    saved: tuple[int, ...] = ()  # the steps of its checkpoints

    @property
    def step(self) -> int:
        """The last step in metrics.jsonl."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def finished(self) -> bool:
        """Whether the run has made all its steps, and evaluated after them if it evaluates."""
        evaluated = not self.config.eval.evaluators or self.config.total_steps in {s for s, _ in self.evaluations()}
        return self.step >= self.config.total_steps and evaluated

    def evaluations(self) -> list[tuple[int, dict[str, float]]]:
        """(step, {"evaluator/metric": value}) of every evaluation, in order."""
        found: dict[int, dict[str, float]] = {}
        evaluators = result_names(self.config.eval.evaluators)
        for line in self.lines:
            values = {name: v for name, v in line.items() if name.partition("/")[0] in evaluators}
            if values:
                found.setdefault(int(line["step"]), {}).update(values)
        return sorted(found.items())

    def images(self, step: int) -> int:
        """The images that the run has trained on until a step."""
        return step * self.config.global_batch_size

    def training_seconds(self, step: int) -> float:
        """Seconds that the steps until `step` took, without start, evaluations and checkpoints; NaN if not logged."""
        total, before = 0.0, 0
        for line in self.lines:
            if "seconds_per_step" in line and before < line["step"]:
                total += (min(int(line["step"]), step) - before) * line["seconds_per_step"]
                before = min(int(line["step"]), step)
                if before == step:
                    return total
        return total if before == step else math.nan


def read_records(folders: list[str]) -> tuple[list[RunRecord], list[str]]:
    """(the records of runs, and of the cells of sweeps; a line for every cell that has not begun).

    A folder that is named twice counts once. Raises ConfigError for a folder that is neither.
    """
    records: dict[Path, RunRecord] = {}
    notes = []
    for folder in folders:
        path = as_path(folder)
        if is_sweep(path):
            sweep = read_sweep(path)
            for cell in sweep.cells:
                workdir = path / cell.path
                record = _read(workdir, cell.seconds, tuple(sweep.fields))
                if record is not None:
                    records.setdefault(_same(workdir), record)
                else:
                    notes.append(f"{workdir} has not begun" + (f": {cell.error}" if cell.error else "."))
        else:
            record = _read(path, 0.0, ())
            if record is None:
                raise ConfigError(f"{folder} is {_what(path)}; expected the --workdir of a run or of a sweep.")
            records.setdefault(_same(path), record)
    require(bool(records), "None of the cells has begun." + "".join(f"\n  {note}" for note in notes))
    return list(records.values()), notes


def _read(workdir: Path, seconds: float, fields: tuple[str, ...]) -> RunRecord | None:
    config = trained_config(workdir)
    if config is None:
        return None
    saved = tuple(whole_steps(checkpoints_of(workdir)))
    return RunRecord(str(workdir), config, tuple(read_metrics(workdir)), seconds, fields, saved)


def _same(path: Path) -> Path:
    """A path that is equal for all names of one folder."""
    return path if is_remote(path) else path.resolve()


def _what(path: Path) -> str:
    if not path.exists():
        return "not there"
    return "a folder without config.json and metrics.jsonl" if path.is_dir() else "a file"
