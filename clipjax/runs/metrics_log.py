"""Metrics of a run: metrics.jsonl, one line per log, and TensorBoard events."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipjax.files import naming, write_text
from clipjax.json_files import read_json_lines
from clipjax.storage import as_path

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends lines {"step": s, name: value, ...} on the first process; does nothing on the others.

    resume_step: lines beyond it, which a killed run wrote after its last checkpoint, are dropped first, so that the
    file holds a single curve.
    """

    def __init__(self, workdir: str | Path, *, tensorboard: bool, resume_step: int):
        self.file = self.events = None
        self.event_errors: list[OSError] = []
        if jax.process_index() != 0:
            return
        self.path = path = Path(workdir) / FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= resume_step and resume_step > 0]
        write_text(path, "".join(to_line(line) for line in kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        if tensorboard:
            from tensorboardX import SummaryWriter

            folder = Path(workdir) / "tensorboard"
            with naming(folder):
                self.events = SummaryWriter(str(folder), purge_step=resume_step + 1)
            self.event_errors = _kept_errors(self.events, folder)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line, which is in the file when this returns. Values that are not finite become null."""
        if self.file is None or not values:
            return
        with naming(self.path):
            self.file.write(to_line({"step": step, **values}))
            self.file.flush()
        for error in self.event_errors[:1]:
            raise error
        for name, value in values.items() if self.events else ():
            self.events.add_scalar(name, value, step)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Adds a picture, [H, W, 3] uint8, to the TensorBoard events, if there are any."""
        if self.events:
            self.events.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Writes the events that are buffered; lines are written at once."""
        if self.events:
            self.events.flush()

    def close(self) -> None:
        for sink in (self.file, self.events):
            if sink is not None:
                with naming(self.path):
                    sink.close()
        self.file = self.events = None
        for error in self.event_errors[:1]:
            raise error


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of workdir/metrics.jsonl; [] without the file. Torn lines are left out; null is read as NaN."""
    return [
        {name: math.nan if value is None else value for name, value in line.items() if _is_number(value)}
        for line in read_json_lines(as_path(workdir) / FILE, ("step",))
        if type(line["step"]) is int
    ]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _kept_errors(events: Any, folder: Path) -> list[OSError]:
    """The list to which the thread that writes events adds its errors, such as a full disk; it would die of them, and
    then block the run. tensorboardX has no public way to hear of them."""
    writer, errors = events.file_writer.event_writer._ev_writer, []

    def keeping(method: Any) -> Any:
        def call(*args: Any) -> Any:
            try:
                with naming(folder):
                    return method(*args)
            except OSError as error:
                errors.append(error)

        return call

    for name in ("write_event", "flush", "close"):
        setattr(writer, name, keeping(getattr(writer, name)))
    return errors


def to_line(values: dict[str, float]) -> str:
    """JSON has no NaN or infinity, and readers other than Python's refuse them, so they become null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}) + "\n"
