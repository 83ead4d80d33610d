"""Starts the cells of a sweep: as processes of this machine, as lines to copy, or as jobs of Slurm."""

from __future__ import annotations

import getpass
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clipjax import signals
from clipjax.config import ConfigError
from clipjax.files import split_lines
from clipjax.machine.compilation_cache import cache_root
from clipjax.processes import duration
from clipjax.runs.lock import lock_owner
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.sweep import LOG, Cell, saved_step
from clipjax.storage import AnyPath, is_remote, upload_file

PROGRAM = (sys.executable, "-m", "clipjax")  # what runs a cell, whatever is on the PATH
POLL_SECONDS = 0.2
TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes of a cell that SIGTERM ended before its first step
SHOW_SECONDS = 60.0  # between two lines about cells that are running


@dataclass
class Task:
    """A cell that is to be trained."""

    cell: Cell
    number: int  # of the cell in the sweep, from 1
    workdir: AnyPath
    arguments: list[str]  # of clipjax train, without --workdir
    images: float  # that are left to train on
    total_steps: int
    process: subprocess.Popen | None = field(default=None, repr=False)
    started: float = 0.0
    shown: str | None = None  # its progress, when it was last shown
    held: bool = False  # another run had its workdir
    log_start: int = 0  # where this try's part of the log begins

    @property
    def log(self) -> AnyPath:
        return self.workdir / LOG

    @property
    def local_log(self) -> Path:
        """Where the log is while the cell is trained: of a workdir in a bucket, a file in the user's cache."""
        if not is_remote(self.workdir):
            return self.log
        name = hashlib.sha256(str(self.workdir).encode()).hexdigest()[:16]
        return cache_root(os.environ) / "sweep_logs" / name / LOG

    def open_log(self) -> BinaryIO:
        """The local log, to append to; a bucket's log of earlier tries is fetched first."""
        self.local_log.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(self.workdir) and not self.local_log.exists() and self.log.exists():
            self.local_log.write_bytes(self.log.read_bytes())
        return open(self.local_log, "ab")

    def publish_log(self) -> None:
        """Uploads the log of a workdir in a bucket, and removes it here."""
        if is_remote(self.workdir):
            try:
                upload_file(self.local_log, self.log)
                shutil.rmtree(self.local_log.parent, ignore_errors=True)
            except OSError as error:
                _say(f"{self.cell.path}: its log stays in {self.local_log}: {error}")

    @property
    def command(self) -> list[str]:
        return ["clipjax", "train", *self.arguments, f"--workdir={self.workdir}"]


class Local:
    """Trains tasks as processes, `jobs` at a time. `save` is called when a cell's status has changed.

    edited: whether the cells would read another experiment file than the sweep has; none is started then.
    """

    def __init__(
        self, tasks: Sequence[Task], total: int, jobs: int, save: Callable[[], None], edited: Callable[[], bool]
    ):
        self.waiting, self.total, self.jobs, self.save, self.edited = list(tasks), total, jobs, save, edited
        self.running: list[Task] = []
        self.done: list[tuple[float, float]] = []  # (images, seconds) of the cells that finished
        self.stopping = 0  # signals received
        self.changed = False  # whether cells wait for an experiment file that was edited
        self.shown = time.monotonic()

    def run(self) -> int:
        """Trains all, or until a signal. Returns the number of the signal that stopped it, 0 for none."""
        with signals.noting(most=2) as received:
            while self.running or (self.waiting and not received.count and not self.changed):
                if received.count > self.stopping:
                    self._stop(received.count)
                while len(self.running) < self.jobs and not received.count and (task := self._next()):
                    self._start(task)
                time.sleep(POLL_SECONDS)
                for task in [task for task in self.running if task.process.poll() is not None]:
                    self._end(task)
                if time.monotonic() - self.shown > SHOW_SECONDS:
                    self._show_running()
        return received.number

    def _next(self) -> Task | None:
        """The next waiting cell that no other run holds, such as one that outlived a sweep that was killed."""
        self.changed = self.changed or self.edited()
        for task in self.waiting if not self.changed else ():
            owner = lock_owner(task.workdir)
            if not owner:
                self.waiting.remove(task)
                return task
            if not task.held:
                task.held = True
                _say(f"{self._label(task)}: waits for the end of another run in it: {owner}")
        return None

    def _stop(self, count: int) -> None:
        """The first signal lets the running cells save; the second ends them. count: signals received."""
        self.stopping = count
        for task in self.running:
            with suppress(ProcessLookupError):
                os.killpg(task.process.pid, signal.SIGTERM if self.stopping == 1 else signal.SIGKILL)
        if self.stopping == 1:
            _say(f"Stopping: {len(self.running)} running cell(s) save their state first. Once more: end them at once.")

    def _start(self, task: Task) -> None:
        task.workdir.mkdir(parents=True, exist_ok=True)
        step = saved_step(task.workdir)
        command = [*PROGRAM, *task.command[1:], "--num_processes=1"]  # whatever job started the sweep
        with task.open_log() as log:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            log.write(f"# {stamp}: {shlex.join(task.command)}\n".encode())
            log.flush()
            task.log_start = log.tell()
            # In a session of its own, so that Ctrl-C reaches it only as the SIGTERM with which it saves.
            task.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        task.started, task.cell.status, task.cell.error = time.monotonic(), "running", ""
        self.running.append(task)
        self.save()
        _say(f"{self._label(task)}: {f'goes on at step {step}' if step else 'starts'}; log {task.local_log}")

    def _end(self, task: Task) -> None:
        seconds, cell, code = time.monotonic() - task.started, task.cell, task.process.returncode
        self.running.remove(task)
        if cell.seconds >= 0:
            cell.seconds = round(cell.seconds + seconds, 3)
        step = saved_step(task.workdir)
        if code == 0 and step >= task.total_steps:
            cell.status = "finished"
            self.done.append((task.images, seconds))
            line = f"finished in {duration(seconds)}{_headline(task.workdir)}{self._outlook()}"
        elif self.stopping and code in (0, *TERMINATED, -signal.SIGKILL):
            cell.status = "stopped"
            line = f"stopped, {f'saved at step {step}' if step else 'before its first checkpoint'}"
        elif code == 0 or code in TERMINATED:
            cell.status = "stopped"
            line = f"stopped by a signal of others, at step {step} of {task.total_steps}{self._outlook()}"
        else:
            cell.status, cell.error = "failed", last_error(task.local_log, task.log_start, code)
            line = f"FAILED after {duration(seconds)}: {cell.error}\n    log: {task.log}"
        task.publish_log()
        self.save()
        _say(f"{self._label(task)}: {line}")

    def _outlook(self) -> str:
        left = len(self.waiting) + len(self.running)
        eta = self.eta()
        return f"; {left} left" + (f", ETA {duration(eta)}" if eta is not None else "") if left else ""

    def eta(self) -> float | None:
        """Seconds until all cells are done, as long as those that finished took; None before the first."""
        if not self.done:
            return None
        now = time.monotonic()
        left = sum(self._expected(task) for task in self.waiting)
        left += sum(max(0.0, self._expected(task) - (now - task.started)) for task in self.running)
        return left / min(self.jobs, len(self.waiting) + len(self.running) or 1)

    def _expected(self, task: Task) -> float:
        """Seconds that a cell takes: the mean of those as long as it, or what their images and starts suggest."""
        alike = [seconds for images, seconds in self.done if images == task.images]
        if alike:
            return sum(alike) / len(alike)
        images, seconds = np.array(self.done, np.float64).T
        if images.std() == 0:  # the start counts as much as the images, until two sizes tell them apart
            return float(seconds.mean()) * (1 + task.images / images.mean()) / 2
        slope, start = np.polyfit(images, seconds, 1)
        return max(float(seconds.min()), slope * task.images + start)

    def _show_running(self) -> None:
        self.shown = time.monotonic()
        for task in self.running:
            line = next(
                (text for text in reversed(_tail(task.local_log, task.log_start)) if text.startswith("step ")), ""
            )
            if line != task.shown:
                task.shown = line
                _say(f"{self._label(task)}: {line or 'getting ready'}")

    def _label(self, task: Task) -> str:
        return f"[{task.number}/{self.total}] {task.cell.path}"


def print_commands(tasks: Sequence[Task]) -> None:
    """A line for each cell, to copy; nothing else, so that the output is a script."""
    for task in tasks:
        task.cell.status = "printed"
        print(shlex.join(task.command), flush=True)


def submit(tasks: Sequence[Task], sbatch: str, save: Callable[[], None]) -> None:
    """Submits one job for each cell. Raises ConfigError when sbatch refuses one; those before it stay submitted."""
    queued = _queued()
    for task in tasks:
        log = task.log if not is_remote(task.workdir) else Path(f"{task.cell.path.replace('/', '_')}.log").absolute()
        if task.cell.job and task.cell.job in queued:
            _say(f"{task.cell.path}: still queued or running as job {task.cell.job}")
            continue
        task.workdir.mkdir(parents=True, exist_ok=True)
        # The command replaces the job's shell, so that the signal before the time limit reaches it, and it saves.
        script = "exec " + shlex.join([*PROGRAM, *task.command[1:]])
        options = ["--parsable", f"--job-name={task.cell.path}", f"--output={log}", "--open-mode=append"]
        command = ["sbatch", *options, "--signal=B:TERM@120", *shlex.split(sbatch), f"--wrap={script}"]
        try:
            process = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ConfigError("--launch=slurm: there is no sbatch here; run it where jobs are submitted.") from error
        if process.returncode:
            text = (process.stderr or process.stdout).strip()
            raise ConfigError(f"sbatch refused {task.cell.path} (exit code {process.returncode}): {text}")
        task.cell.job, task.cell.status, task.cell.error = process.stdout.strip().split(";")[0], "submitted", ""
        save()
        _say(f"{task.cell.path}: job {task.cell.job}")


def last_error(log: Path, start: int, code: int) -> str:
    """The last line of the error that ended a process, from its log; `start`: where its part of the log begins."""
    lines = [line for line in _tail(log, start) if line.strip()]
    ours = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    if ours:
        return ours.removeprefix("error: ")
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f"ended by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
    return lines[-1].strip() if lines else f"exit code {code}"


def _tail(log: Path, start: int, most: int = 65536) -> list[str]:
    with open(log, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - most))
        return split_lines(file.read().decode("utf-8", "replace"))


def _headline(workdir: Path) -> str:
    """The last evaluation's accuracies and recalls at 1."""
    shown: dict[str, float] = {}
    for line in read_metrics(workdir):
        shown |= {name: value for name, value in line.items() if name.endswith(("/top1", "_r1"))}
    return "".join(f"; {name} {value:.1%}" for name, value in list(shown.items())[:2])


def _queued() -> set[str]:
    """The numbers of this user's jobs that Slurm still has; empty where it cannot be asked."""
    try:
        command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A"]
        return set(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split())
    except (OSError, KeyError, subprocess.TimeoutExpired):
        return set()


def _say(line: str) -> None:
    print(line, flush=True)
