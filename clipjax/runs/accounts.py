"""Where the time of a run goes: every second of a process belongs to exactly one phase."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# In the order of tables. "other": pictures, reports and profiles.
PHASES = ("step", "data_wait", "start", "compile", "restore", "evaluation", "checkpoint", "other")


class Accounts:
    """Seconds by phase, of the main thread: with accounts("evaluation"): ...

    started: when the process began, in seconds since the epoch, from which time it is in phase "start"; None: now.
    What the phases have taken, together, is the time since then.
    """

    def __init__(self, started: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        now, wall = clock(), time.time()
        self.started = wall if started is None else min(started, wall)
        self.since = now - (wall - self.started)  # when the current phase began, or was last counted
        self.begun = self.since
        self.phase = "start"
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """The block's time belongs to `phase`, except that of blocks inside it."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, phase: str) -> str:
        """From now on, time belongs to `phase`; returns the phase before."""
        self._count()
        before, self.phase = self.phase, phase
        return before

    def move(self, seconds: float, phase: str) -> None:
        """Counts seconds that have just passed as `phase`, not as the current one."""
        self._count()
        seconds = min(max(seconds, 0.0), self.seconds[self.phase])  # a measured time may exceed what is there
        self.seconds[self.phase] -= seconds
        self.seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call; phases without any are left out."""
        self._count()
        taken = {phase: seconds for phase, seconds in self.seconds.items() if seconds}
        self.seconds = dict.fromkeys(PHASES, 0.0)
        return taken

    def elapsed(self) -> float:
        """Seconds since `started`, by a clock that nobody sets."""
        return self.clock() - self.begun

    def _count(self) -> None:
        now = self.clock()
        self.seconds[self.phase] += now - self.since
        self.since = now


def process_started() -> float:
    """When this process began, in seconds since the epoch; now, where the system does not tell (not Linux)."""
    now = time.time()
    try:
        # The fields after the name, which may contain anything; starttime is field 22, in ticks since the machine's.
        ticks = float(Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - age if 0 <= age < 24 * 3600 else now
