"""What a workdir holds for a report: read once, with a sentence about everything that is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, flat, from_json_dict
from clipjax.config.metrics import is_count
from clipjax.json_files import read_json_object
from clipjax.runs.advice import read_advice
from clipjax.runs.bad_records_log import read_bad_records
from clipjax.runs.goodput import Goodput, read_goodput
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.run import hint
from clipjax.runs.snapshots import PAIRS, PREDICTIONS, Snapshot, read_document, read_snapshots
from clipjax.runs.steps import absolute
from clipjax.storage import as_path
from clipjax.training.state import result_names

NO_METRICS = "No curves: this directory has no metrics.jsonl, as weights that were imported."
NO_PAIRS = (
    "No held-out pairs are stored: the run had no evaluators, or config.log.figures was off, or it was made before "
    "clipjax kept snapshots, or none of its held-out records could be read."
)
NO_PREDICTIONS = "No predictions are stored yet: they are made at the end of training, or by clipjax report."


@dataclasses.dataclass(frozen=True)
class RunData:
    """A run as its report shows it."""

    name: str  # as the legend says it
    directory: str
    config: dict[str, Any]  # as JSON; {} where there is none
    metrics: list[dict[str, float]]
    snapshots: list[Snapshot]
    pairs: dict[str, Any] | None  # pairs.json
    predictions: dict[str, Any] | None  # predictions.json
    bad_records: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]  # {evaluator: {metric: value}} of the last evaluation
    results_step: int | None
    missing: dict[str, str]  # section -> why it is not there: "curves", "pairs", "predictions"
    advice: tuple[str, ...] = ()  # what the advisor has said
    goodput: Goodput | None = None  # where its time went; None where that was not counted

    @property
    def step(self) -> int | None:
        """The last step that anything is known of."""
        steps = [line["step"] for line in self.metrics] + [found.step for found in self.snapshots]
        steps += [self.predictions["step"]] if self.predictions else []
        return max(steps, default=None)

    @property
    def total_steps(self) -> int | None:
        return self.config.get("total_steps") if self.metrics else None

    @property
    def fields(self) -> dict[str, Any]:
        """{dotted name: value} of the configuration."""
        return flat_fields(self.config)


def read_run(workdir: str | Path, name: str = "") -> RunData:
    """Everything that workdir stores. Raises ConfigError for a folder that is neither a run nor imported weights."""
    workdir = as_path(workdir)
    config = read_json_object(workdir / "config.json")
    metrics = read_metrics(workdir)
    if not (config or metrics or (workdir / "checkpoints").is_dir()):
        raise ConfigError(
            f"{workdir} is no run: expected the --workdir of a training run, or a directory that clipjax import wrote, "
            f"with config.json.{hint(workdir)}"
        )
    pairs = read_document(workdir, PAIRS)
    snapshots = read_snapshots(workdir, pairs["id"]) if pairs else []
    predictions = read_document(workdir, PREDICTIONS)
    results, results_step = last_results(workdir, metrics, config)
    missing = {
        "curves": "" if metrics else NO_METRICS,
        "pairs": "" if snapshots and len(snapshots[0].image) else NO_PAIRS,
        "predictions": "" if predictions else NO_PREDICTIONS,
    }
    return RunData(
        name=name or absolute(workdir).name,
        directory=str(workdir),
        config=config,
        metrics=metrics,
        snapshots=snapshots,
        pairs=pairs,
        predictions=predictions,
        bad_records=read_bad_records(workdir),
        results=results,
        results_step=results_step,
        missing={section: why for section, why in missing.items() if why},
        advice=tuple(said["text"] for said in read_advice(workdir)),
        goodput=read_goodput(workdir),
    )


def read_runs(workdirs: list[str | Path]) -> list[RunData]:
    """read_run of each, under names that differ: the folder's, or the whole path where two folders share a name."""
    names = [absolute(workdir).name for workdir in workdirs]
    return [
        read_run(workdir, name if names.count(name) == 1 else str(workdir))
        for workdir, name in zip(workdirs, names, strict=True)
    ]


def last_results(
    workdir: Path, metrics: list[dict[str, float]], config: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], int | None]:
    """({evaluator: {metric: value}}, step): the last evaluation in metrics.jsonl, or else the last of clipjax eval."""
    section = config.get("eval")
    evaluators = section.get("evaluators") if isinstance(section, dict) else {}
    evaluators = evaluators if isinstance(evaluators, dict) else {}  # config.json may be damaged
    names = result_names(evaluators)
    results: dict[str, dict[str, Any]] = {}
    last = None
    for line in metrics:
        own = {key.partition("/")[0] for key in line if "/" in key} & names
        if own:
            last, results = line["step"], {}
            for key, value in line.items():
                name, _, metric = key.partition("/")
                if name in own:
                    results.setdefault(name, {})[metric] = _as_number(metric, value)
    if results:
        return results, last
    # clipjax eval --data=photos writes into a folder of its own.
    files = sorted((file for at in ("*", "*/*") for file in workdir.glob(f"eval/{at}/results.json")), key=_written)
    document = read_json_object(files[-1]) if files else {}
    stored = document.get("results", {})
    return {name: result for name, result in stored.items() if isinstance(result, dict)}, document.get("step")


def _written(path: Path) -> float:
    """When a file was written, as a time that orders files."""
    found = path.stat()
    return found.st_mtime if hasattr(found, "st_mtime") else found.mtime


def _as_number(metric: str, value: float) -> float | int:
    """Counts, which metrics.jsonl holds as floats, as whole numbers."""
    counted = float(value).is_integer() and (value > 1 or is_count(metric))
    return int(value) if counted and not metric.endswith("rank") else value


def flat_fields(tree: dict[str, Any]) -> dict[str, Any]:
    """{dotted name: value} of a configuration as JSON, also of a version of clipjax with other fields."""
    try:
        return flat(from_json_dict(tree)) if tree else {}
    except (ConfigError, TypeError, ValueError):
        return dict(_flat(tree))


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in tree.items():
        inside = isinstance(value, dict)
        found += _flat(value, f"{prefix}{key}.") if inside else [(f"{prefix}{key}", value)]
    return found
