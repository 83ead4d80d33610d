"""Where the time of a run went, over all its starts: goodput.jsonl, and the table made of it.

Each line says what the time since the line before it was spent on:

    {"start": 2, "time": 1790000000.0, "step": 120, "steps": 20, "seconds": {"step": 4.1, "data_wait": 0.2}}

start: which start of the run, from 1. time: at the end of what the line counts, in seconds since the epoch. step: the
last step made, and steps: how many the line counts. A start's first line has "from", the step that it continues after,
and counts nothing; its last one, unless the process was killed, has "end". Nothing is changed later: which steps a
restart made again, and how long the run was down, follows from the lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from clipjax.files import naming, write_text
from clipjax.json_files import read_json_lines
from clipjax.runs.accounts import PHASES, Accounts
from clipjax.storage import as_path

FILE = "goodput.jsonl"
REDONE = ("step", "data_wait", "evaluation", "checkpoint")  # what is lost beyond the checkpoint of a restart
FINISHED = "finished"  # the "end" of a start that made the last step: the time until another start is nobody's loss
ROWS = (*PHASES, "lost", "down")
# A line is written when a hundredth of the run has passed since the last one, but at least and at most after:
OFTENEST, RAREST = 1.0, 30.0  # seconds


class GoodputLog:
    """Keeps the accounts of this start in workdir/goodput.jsonl, on the first process; the others only count.

    with GoodputLog(...) as log: ...

    resume_step: the checkpoint's that this start continues from; 0: none. check: raises where nothing may be written.
    Set `finished` once the last step is saved, and `memory` to the most that has been used (clipjax.machine.memory).
    """

    def __init__(
        self, workdir: str | Path, accounts: Accounts, resume_step: int, check: Callable[[], None] = lambda: None
    ):
        self.accounts, self.path, self.file, self.check = accounts, Path(workdir) / FILE, None, check
        self.step, self.steps, self.written = resume_step, 0, 0.0
        self.memory: dict[str, int] = {}
        self.finished = False
        self.last: Any = None  # what the last step computes
        if jax.process_index() != 0:
            return
        lines = read_lines(workdir)
        self.start = 1 + max((line["start"] for line in lines), default=0)
        first = {"start": self.start, "time": accounts.started, "step": resume_step, "from": resume_step}
        first |= {"steps": 0, "seconds": {}, "processes": jax.process_count(), "devices": jax.device_count()}
        if lines:
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))  # without torn ones
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self.file.write(json.dumps(first) + "\n")
        self.file.flush()
        self.earlier = summarise([*lines, first])

    def __enter__(self) -> GoodputLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():  # the first error is to be told
            self.close()

    def stepping(self, step_fn: Callable, compile_seconds: Callable[[], float]) -> Callable:
        """step_fn, whose compilation counts as such."""

        def call(state: Any, batch: Any) -> Any:
            before = compile_seconds()
            state, self.last = step_fn(state, batch)
            self.accounts.move(compile_seconds() - before, "compile")
            return state, self.last

        return call

    def busy(self) -> bool:
        """Whether the devices still compute the last step."""
        return not all(value.is_ready() for value in jax.tree.leaves(self.last))

    def waiting(self, stream: Iterator[tuple[Any, Any, float]]) -> Iterator[tuple[Any, Any, float]]:
        """stream, whose third value counts as waiting for data."""
        for batch, state, waited in stream:
            self.accounts.move(waited, "data_wait")
            yield batch, state, waited

    def during(self, phase: str, function: Callable) -> Callable:
        """function, whose time belongs to `phase`, after the steps that its first argument waits for."""

        def call(*args: Any, **kwargs: Any) -> Any:
            jax.block_until_ready(args[:1])
            if self.steps or self.accounts.elapsed() - self.written > OFTENEST:
                self.write()
            with self.accounts(phase):
                result = function(*args, **kwargs)
            self.write()
            return result

        return call

    def step_done(self, step: int) -> None:
        """Counts a step, and writes a line now and then."""
        self.step, self.steps = step, self.steps + 1
        elapsed = self.accounts.elapsed()
        if elapsed - self.written > min(max(elapsed / 100, OFTENEST), RAREST):
            self.write()

    def write(self, **more: Any) -> None:
        """Writes what has been counted since the last line."""
        self.written = self.accounts.elapsed()
        seconds, steps, self.steps = self.accounts.take(), self.steps, 0
        if self.file is None:
            return
        line = {"start": self.start, "time": self.accounts.started + self.written, "step": self.step, "steps": steps}
        line["seconds"] = {phase: round(taken, 6) for phase, taken in seconds.items()}
        line |= {"memory": self.memory} if self.memory else {}
        self.check()
        self.earlier.add(line)
        with naming(self.path):
            self.file.write(json.dumps(line | more) + "\n")
            self.file.flush()

    def share(self) -> dict[str, float]:
        """{"goodput": share of the run's time so far that made steps which still count}; {} where no file is kept."""
        return {} if self.file is None else {"goodput": self.earlier.goodput}

    def close(self) -> None:
        """Writes the last line."""
        if self.file is not None:
            try:
                self.write(end=FINISHED if self.finished else "stopped")
            finally:
                self.file.close()
                self.file = None


@dataclasses.dataclass
class Goodput:
    """Seconds of a run by row of the table, ROWS, over all of its starts."""

    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(ROWS, 0.0))
    starts: int = 0
    first_step: int = 0  # the step after which the accounts begin; 0: with the run
    step: int = 0  # the last step made
    lost_steps: int = 0  # steps that a restart made again
    memory: dict[str, int] = dataclasses.field(default_factory=dict)  # see clipjax.machine.memory

    @property
    def wall(self) -> float:
        """Seconds from the first start to the last line, without those between a finished run and its extension."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The share of `wall` that made steps which still count, 0 to 1."""
        return self.seconds["step"] / self.wall if self.wall else 0.0

    def add(self, line: dict[str, Any]) -> None:
        """Counts a line that no restart has made void."""
        for phase, taken in line["seconds"].items():
            self.seconds[phase] += taken
        self.step = line["step"]
        for name, peak in line.get("memory", {}).items():
            self.memory[name] = max(peak, self.memory.get(name, 0))


def summarise(lines: list[dict[str, Any]]) -> Goodput:
    """The accounts of a run's lines, in order."""
    found = Goodput()
    resumed = _resumed_at(lines)
    before: dict[str, Any] | None = None
    for number, line in enumerate(lines):
        if before is None or line["start"] != before["start"]:
            found.starts += 1
            found.first_step = line["step"] if before is None else min(found.first_step, line["step"])
            if before is not None and before.get("end") != FINISHED:
                found.seconds["down"] += max(line["time"] - before["time"], 0.0)
        if line["step"] > resumed[number]:
            lost = sum(line["seconds"].get(phase, 0.0) for phase in REDONE)
            kept = {phase: taken for phase, taken in line["seconds"].items() if phase not in REDONE}
            found.add(line | {"seconds": kept | {"lost": lost}})
            found.lost_steps += line["steps"]
        else:
            found.add(line)
        before = line
    return found


def _resumed_at(lines: list[dict[str, Any]]) -> list[float]:
    """Of each line, the earliest step from which a later start has gone on; infinity where there was none."""
    earliest, found = math.inf, []
    for number in range(len(lines) - 1, -1, -1):
        found.append(earliest)
        begins = number == 0 or lines[number - 1]["start"] != lines[number]["start"]
        if begins:
            earliest = min(earliest, lines[number]["step"])
    return found[::-1]


def read_goodput(workdir: str | Path) -> Goodput | None:
    """The accounts of a run; None where it keeps none."""
    lines = read_lines(workdir)
    return summarise(lines) if lines else None


def read_lines(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of workdir/goodput.jsonl; those that are torn or damaged are left out."""
    return [line for line in read_json_lines(as_path(workdir) / FILE, ("start", "time", "step")) if _is_line(line)]


def _is_line(line: dict[str, Any]) -> bool:
    seconds, memory = line.setdefault("seconds", {}), line.setdefault("memory", {})
    whole = (line["start"], line["step"], line.setdefault("steps", 0))
    if not (isinstance(seconds, dict) and isinstance(memory, dict) and all(type(n) is int and n >= 0 for n in whole)):
        return False
    numbers = [line["time"], *seconds.values(), *memory.values()]
    finite = all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) and n >= 0 for n in numbers
    )
    return finite and set(seconds) <= set(PHASES)
