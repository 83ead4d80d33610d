"""Metrics of a run: metrics.jsonl, one line per log. clipjax/runs/sinks sends the same numbers elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from clipjax.files import naming, write_text
from clipjax.json_files import read_json_lines
from clipjax.storage import as_path

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends lines {"step": s, name: value, ...} on the first process; does nothing on the others.

    resume_step: lines beyond it, which a killed run wrote after its last checkpoint, are dropped first, so that the
    file holds a single curve. also: all called with each line, on the first process, once it is in the file.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        resume_step: int,
        also: Sequence[Callable[[int, dict[str, float]], None]] = (),
    ):
        self.file, self.also = None, also
        if jax.process_index() != 0:
            return
        self.path = path = Path(workdir) / FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= resume_step and resume_step > 0]
        write_text(path, "".join(to_line(line) for line in kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line, which is in the file when this returns. Values that are not finite become null."""
        if self.file is None or not values:
            return
        with naming(self.path):
            self.file.write(to_line({"step": step, **values}))
            self.file.flush()
        for write in self.also:
            write(step, values)

    def close(self) -> None:
        if self.file is not None:
            with naming(self.path):
                self.file.close()


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of workdir/metrics.jsonl; [] without the file. Torn lines are left out; null is read as NaN."""
    return [
        {name: math.nan if value is None else value for name, value in line.items() if _is_number(value)}
        for line in read_json_lines(as_path(workdir) / FILE, ("step",))
        if type(line["step"]) is int
    ]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def to_line(values: dict[str, float]) -> str:
    """JSON has no NaN or infinity, and readers other than Python's refuse them, so they become null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}) + "\n"
