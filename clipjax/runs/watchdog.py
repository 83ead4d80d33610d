"""Notices a run that makes no steps, and says what every thread is doing: stalls/ in the workdir, one line on stderr.

    with Watchdog(config.log, workdir, accounts) as dog:
        for batch in dog.waiting(stream): ...; dog.step_done(step)

Each process watches itself. A process that has been in one place for long tells the others where, so that process 0 can
name those that hold a step up.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from clipjax import processes, signals
from clipjax.config import LogConfig
from clipjax.files import printable, write_text
from clipjax.processes import duration
from clipjax.runs.accounts import Accounts
from clipjax.storage import as_path

FOLDER = "stalls"
POLL_SECONDS = 1.0
ASLEEP_SECONDS = 15.0  # without a look: the process was stopped, or its machine, and nothing is to be said of that time
STEPS = 50  # of which the median is taken
# Times config.log.watchdog_seconds, of which two hours are 60: the first steps, before there is a median; and whatever
# is no step: start, compile, restore, evaluation, checkpoint.
FIRST_STEPS, FIRST_PATIENCE = 3, 5.0
PATIENCE = 60.0
WRITE_SECONDS = 20.0  # for the file, on a file system that may be what hangs
KEY = "clipjax/where"
PHASES = {
    "start": "starting",
    "compile": "compiling",
    "restore": "restoring the checkpoint",
    "evaluation": "evaluating",
    "checkpoint": "writing a checkpoint",
    "other": "writing pictures, reports or profiles",
}


class Watchdog:
    """Watches the main thread from a thread of its own, unless config.log.watchdog is 0.

    accounts: what the main thread is at. say: takes lines. leave: ends the process, where config.log.watchdog_action is
    "exit".
    """

    def __init__(
        self,
        log: LogConfig,
        workdir: str | Path,
        accounts: Accounts,
        *,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
        leave: Callable[[str], None] | None = None,
    ):
        self.log, self.workdir, self.accounts, self.clock = log, as_path(workdir), accounts, clock
        self.say, self.leave = say or _print, leave or _leave
        self.durations: collections.deque[float] = collections.deque(maxlen=STEPS)
        self.step = 0  # the last one that was made
        self.batch: Any = None  # the last one that training was given
        self.at = "start"  # "data", "step" or "compile" inside the loop; the accounts tell the rest
        self.last = self.since = self.looked = clock()
        self.place: tuple = ()
        self.told = self.published = False
        self.done = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.log.watchdog:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.done.set()

    def waiting(self, stream: Iterator[tuple[Any, Any, float]]) -> Iterator[tuple[Any, Any, float]]:
        """stream; waiting for its next batch is a place of its own."""
        while True:
            self.at, self.last = "data", self.clock()
            try:
                item = next(stream)
            except StopIteration:
                return
            self.batch, self.at = item[0], "step"
            yield item

    def compiling(self, steps: Any) -> Any:
        """steps, whose method `compile` is a place of its own until the step that needs it is made; None stays None."""
        if compile_program := getattr(steps, "compile", None):

            def compile_watched(*args: Any) -> Any:
                self.at = "compile"
                return compile_program(*args)

            steps.compile = compile_watched
        return steps

    def step_done(self, step: int) -> None:
        """Counts a step."""
        if self.at == "step":
            self.durations.append(self.clock() - self.last)
        self.step, self.at = step, "step"

    def limit(self) -> float:
        """Seconds that the main thread may spend where it is."""
        floor = self.log.watchdog_seconds
        if self.place[0] not in ("step", "data"):
            return PATIENCE * floor
        if len(self.durations) < FIRST_STEPS:
            return FIRST_PATIENCE * floor
        return max(floor, self.log.watchdog * statistics.median(self.durations))

    def look(self) -> None:
        """Compares where the main thread is with where it was. Called every POLL_SECONDS."""
        now, place = self.clock(), self._place()
        if now - self.looked > ASLEEP_SECONDS:
            self.since += now - self.looked
        self.looked = now
        if place != self.place:
            if self.told:
                self.say(f"the run goes on after {duration(now - self.since)}: it is {self._where(place)}.")
            self.place, self.since, self.told = place, now, False
            if self.published:
                self._publish("")
            return
        if now - self.since > self.log.watchdog_seconds / 2 and not self.published:
            self._publish(self._where(place))
        if now - self.since > self.limit() and not self.told:
            self.told = True
            self._stalled(now - self.since)

    def _place(self) -> tuple:
        """(phase, last step): what the main thread is at, of which every change is progress."""
        phase = self.accounts.phase
        return (self.at if phase == "step" else phase), self.step

    def _where(self, place: tuple) -> str:
        phase, step = place
        if phase == "data":
            return f"waiting for the data of step {step + 1}"
        if phase == "step":
            return f"in step {step + 1}, with its batch"
        return PHASES[phase] + (f" after step {step}" if step else "")

    def _stalled(self, seconds: float) -> None:
        found, index = stacks(), jax.process_index()
        path = self.workdir / FOLDER / f"step_{self.place[1]}_process_{index}.txt"
        median = f" (the median step took {statistics.median(self.durations):.3g} s)" if self.durations else ""
        ends = self.log.watchdog_action == "exit"
        line = (
            f"nothing has moved for {duration(seconds)}{median}: process {index} on {socket.gethostname()} is "
            f"{self._where(self.place)}.{self._others()} The stacks of all threads are in {path}"
            + ("; the run ends, because config.log.watchdog_action='exit'." if ends else ".")
        )
        self.say(line)
        writer = threading.Thread(target=self._write, args=(path, line, found), daemon=True)
        writer.start()
        writer.join(WRITE_SECONDS)
        if ends:
            self.leave(f"nothing has moved for {duration(seconds)}")

    def _write(self, path: Path, line: str, found: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        threads = "".join(f"0x{thread.ident:016x}  {thread.name}\n" for thread in threading.enumerate())
        text = f"{now}, process id {os.getpid()}\n{line}\nlast step made: {self.step}\n\n{threads}\n{found}"
        try:
            write_text(path, text)
        except Exception as error:
            self.say(f"{path} could not be written ({error}), so here it is:\n{text}")

    def _others(self) -> str:
        """On process 0, which processes hold up a step that this one is in, as far as they have told."""
        if jax.process_count() == 1 or jax.process_index() or self.place[0] not in ("step", "compile"):
            return ""
        with contextlib.suppress(Exception):
            entries = processes.store().key_value_dir_get(KEY)
            told = sorted((int(name.rpartition("/")[2]), json.loads(value)) for name, value in entries)
            behind = [
                f"process {index} on {other['host']} is {other['where']}"
                for index, other in told
                if index and other["where"] not in ("", self._where(self.place))
            ]
            return f" It waits for others: {'; '.join(behind)}." if behind else ""
        return ""

    def _publish(self, where: str) -> None:
        """Tells the other processes where this one is; "": it has gone on."""
        self.published = bool(where)
        if jax.process_count() > 1:
            with contextlib.suppress(Exception):  # the service may be what is gone
                text = json.dumps({"host": socket.gethostname(), "where": where})
                processes.store().key_value_set(f"{KEY}/{jax.process_index()}", text, allow_overwrite=True)

    def _run(self) -> None:
        while not self.done.wait(POLL_SECONDS):
            self.look()


def stacks() -> str:
    """The stacks of all threads, as faulthandler writes them."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _print(line: str) -> None:
    print(f"watchdog: {printable(line, lines=False)}", file=sys.stderr, flush=True)


def _leave(reason: str) -> None:
    """Ends this process with 1, after it has told the others why."""
    signals.tidy(reason)
    os._exit(1)
