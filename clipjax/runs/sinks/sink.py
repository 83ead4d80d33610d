"""What a sink is, and what it is told of its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from clipjax.files import write_text
from clipjax.json_files import read_json_object

FOLDER = "sinks"  # of the workdir: NAME.json, by which a restart finds the same run again


class GivesUp(Exception):
    """A sink that will take nothing more; the message says why. After any other error it is asked again later."""


class Sink(Protocol):
    """A sink that is open. Its methods are called in order from one thread, may wait, and may raise anything."""

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """A line of metrics.jsonl, of `time` (seconds since the epoch). Called again where it raised."""

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """A picture, [H, W, 3] uint8; its step may be an earlier one."""

    def file(self, name: str, data: bytes) -> None:
        """A file at the end of the run: summary.png, report.html."""

    def close(self, status: str) -> None:
        """The end; status: "finished", "failed" or "killed"."""


class About(NamedTuple):
    """What a sink is told of the run."""

    workdir: Path  # or, of a run in a bucket, the local folder whose files are uploaded to it
    config: dict[str, Any]  # {dotted name: value}
    experiment: str  # a hash of what decides the curve
    resume_step: int  # 0: the run begins
    logged: dict[str, int]  # {metric: the last step for which metrics.jsonl had it before this start}

    @property
    def name(self) -> str:
        """What the run is called: the workdir's name."""
        return self.workdir.absolute().name

    def known(self, sink: str) -> dict[str, Any]:
        """What `keep` was given in an earlier start of this run; {} where it is a new one.

        A run that begins again at step 0 with another configuration is another run.
        """
        kept = read_json_object(self.workdir / FOLDER / f"{sink}.json")
        return kept if self.resume_step or kept.get("experiment") == self.experiment else {}

    def keep(self, sink: str, **known: Any) -> None:
        """Keeps the run's id in the workdir."""
        text = json.dumps({**known, "experiment": self.experiment}, indent=1)
        write_text(self.workdir / FOLDER / f"{sink}.json", text + "\n")


class Row(NamedTuple):
    """A row of SINKS. Its name is the field of config.log that turns it on, and the extra that installs its package."""

    title: str  # in messages
    package: str  # what it imports; "": something that is always installed
    # (the field's value, About) -> Sink; called in the sink's thread, as it may wait for a network
    open: Callable[[Any, About], Sink]
