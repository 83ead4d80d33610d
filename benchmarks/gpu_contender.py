"""What benchmarks.gpu_step does with every library's train step: compile it, time it, and list its kernels.

Nothing here imports JAX or PyTorch before a contender is made, so that the script can say what is missing.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_models import MODELS, VARIANTS, Cell

WINDOWS, WINDOW_SECONDS, PROFILED_STEPS = 4, 1.0, 2


class Contender:
    """A library's train step. Subclasses say how to compile it, run it and look at it."""

    library: str  # a key of gpu_workers.LANES

    def __init__(self, cell: Cell):
        self.cell, self.model, self.variant = cell, MODELS[cell.model], VARIANTS[cell.variant]

    def prepare(self) -> dict[str, Any]:
        """begin(), and what of the result is known before anything is timed."""
        started = time.perf_counter()
        self.step = self.begin()
        result = {"seconds_to_prepare": time.perf_counter() - started}
        return result | self.more()

    def begin(self) -> Callable[[], None]:
        """Compiles and makes the state; returns a function that queues one step."""
        raise NotImplementedError

    def wait(self) -> float:
        """Waits for the queued steps; returns the last loss."""
        raise NotImplementedError

    def peak_memory(self) -> int | None:
        raise NotImplementedError

    def kernels(self, run: Callable[[], None]) -> dict[str, tuple[float, int]]:
        """{kernel: (seconds, launches)} on the device while run() runs."""
        raise NotImplementedError

    def more(self) -> dict[str, Any]:
        """Further entries of the result."""
        return {}

    def measure(self) -> dict[str, Any]:
        """Warms up, times WINDOWS windows of steps, and profiles PROFILED_STEPS."""
        step = self.step
        step()
        losses = [self.wait()]
        once = self.timed(step, 2)  # the second step may still compile or capture
        once = self.timed(step, 2)
        count = 1 if self.cell.toy else int(min(100, max(3, WINDOW_SECONDS / once)))
        windows = [self.timed(step, count) for _ in range(WINDOWS)]
        losses.append(self.wait())
        seconds = statistics.median(windows)
        result = {
            "images_per_second": self.cell.batch / seconds,
            "milliseconds": seconds * 1e3,
            "milliseconds_of_windows": [window * 1e3 for window in windows],
            "steps_a_window": count,
            "first_and_last_loss": losses,
            "peak_memory_bytes": self.peak_memory(),
            "kernels": [],
        }
        try:
            result["kernels"] = self.profile(step)
        except Exception as error:  # the step was measured all the same
            result["kernels_error"] = f"{type(error).__name__}: {str(error)[:200]}"
        return result

    def timed(self, step: Callable[[], None], count: int) -> float:
        """Seconds a step, of `count` queued in a row."""
        started = time.perf_counter()
        for _ in range(count):
            step()
        self.wait()
        return (time.perf_counter() - started) / count

    def profile(self, step: Callable[[], None]) -> list[dict[str, Any]]:
        """The kernels of a step by time, the longest first; numbers at the ends of names are dropped."""

        def run() -> None:
            for _ in range(PROFILED_STEPS):
                step()
            self.wait()

        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for name, (seconds, count) in self.kernels(run).items():
            entry = sums[kernel_name(name)]
            entry[0] += seconds
            entry[1] += count
        whole = sum(seconds for seconds, _ in sums.values()) or 1.0
        longest = sorted(sums.items(), key=lambda item: -item[1][0])[:40]
        return [
            {
                "name": name,
                "milliseconds": seconds * 1e3 / PROFILED_STEPS,
                "count": round(count / PROFILED_STEPS),
                "share": seconds / whole,
            }
            for name, (seconds, count) in longest
        ]


def kernel_name(name: str) -> str:
    """A kernel's name without what numbers its copies: "loop_add_fusion_12" and "loop_add_fusion.3" are one."""
    return re.sub(r"([._]\d+)+$", "", name)[:100]
