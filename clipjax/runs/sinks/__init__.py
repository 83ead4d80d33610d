"""Where the numbers of metrics.jsonl go besides: TensorBoard, Weights & Biases, MLflow.

    with open_sinks(config, workdir, resume_step=0) as sinks:
        sinks.write(10, {"loss": 2.5})

To add one, write one file with a `Row` like tensorboard.py, and name it in SINKS; the field of config.log with the
row's name turns it on. A sink works in a thread of its own. Where it fails, a warning says so, and training goes on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipjax import signals
from clipjax.config import ExperimentConfig, LogConfig, declared, flat, require
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.sinks import mlflow, tensorboard, wandb
from clipjax.runs.sinks.delivery import Delivery, warn
from clipjax.runs.sinks.sink import About, GivesUp, Row, Sink

__all__ = ["SINKS", "About", "GivesUp", "Row", "Sink", "Sinks", "check_sinks", "open_sinks"]

# Each row is turned on by the field of config.log with its name, whose value it is given.
SINKS: dict[str, Row] = {
    "tensorboard": tensorboard.ROW,
    "wandb": wandb.ROW,
    "mlflow": mlflow.ROW,
}


class Sinks:
    """All sinks that a run has; none on processes other than the first. Nothing here raises or waits, except close."""

    def __init__(self, deliveries: list[Delivery]):
        self.deliveries = deliveries
        self.status = "finished"  # how the run ends, unless an exception or a signal ends it
        self.exits = contextlib.ExitStack()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A line of metrics.jsonl."""
        for delivery in self.deliveries:
            delivery.write(step, values)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """A picture, [H, W, 3] uint8."""
        for delivery in self.deliveries:
            delivery.picture(name, step, pixels)

    def file(self, path: Path) -> None:
        """A file that the run has finished, such as its report; nothing where there is none."""
        if self.deliveries and path.is_file():
            data = path.read_bytes()
            for delivery in self.deliveries:
                delivery.file(path.name, data)

    def close(self, status: str) -> None:
        """Delivers what is left. status: "finished", "failed" or "killed"."""
        deliveries, self.deliveries = self.deliveries, []
        for delivery in deliveries:
            delivery.close(status)
        for delivery in deliveries:
            delivery.join(status)

    def __enter__(self) -> Sinks:
        self.exits.enter_context(signals.tidying(lambda _: self.close("killed")))
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        ended = kind is not None and not issubclass(kind, Exception)
        self.close(self.status if kind is None else "killed" if ended else "failed")
        self.exits.close()


def open_sinks(
    config: ExperimentConfig,
    workdir: str | Path,
    *,
    resume_step: int,
    rows: Mapping[str, Row] = SINKS,
    say: Callable[[str], None] = warn,
) -> Sinks:
    """The sinks that config.log turns on. Called before MetricsLog, which drops lines beyond resume_step.

    workdir: has metrics.jsonl. say: takes the warnings. Raises ConfigError as check_sinks does.
    """
    check_sinks(config.log, rows)
    chosen = {name: value for name in rows if (value := getattr(config.log, name))}
    if jax.process_index() != 0 or not chosen:
        return Sinks([])
    logged: dict[str, int] = {}
    for line in read_metrics(workdir):
        logged |= dict.fromkeys(line, line["step"])
    roles, values = declared(config), flat(config)
    curve = {name: value for name, value in values.items() if roles[name].role != "runtime"}
    experiment = hashlib.sha256(json.dumps(curve, sort_keys=True, default=str).encode()).hexdigest()
    about = About(Path(workdir), values, experiment, resume_step, logged)
    return Sinks(
        [
            Delivery(rows[name].title, functools.partial(rows[name].open, value, about), say=say)
            for name, value in chosen.items()
        ]
    )


def check_sinks(log: LogConfig, rows: Mapping[str, Row] = SINKS) -> str:
    """Refuses a sink whose package is not installed, and returns the names of those that are on. Raises ConfigError."""
    chosen: dict[str, Any] = {name: value for name in rows if (value := getattr(log, name))}
    for name, value in chosen.items():
        package = rows[name].package
        require(
            not package or importlib.util.find_spec(package) is not None,
            f"config.log.{name}={value!r} needs the package {package}, which is not installed: pip install "
            f"'clipjax[{name}]'. Or set config.log.{name} to {type(value)()!r} to log without it.",
        )
    return ", ".join(chosen)
