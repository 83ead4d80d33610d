"""Preemption: a cluster sends SIGTERM before it takes a machine away, and all processes notice it at the same step."""

from __future__ import annotations

import signal
from types import FrameType

import jax
from absl import logging
from jax.experimental import multihost_utils


class Preemption:
    """Context manager that notices SIGTERM: `reached(step)` becomes true after it, on all processes at the same step.

    One process uses a signal handler. With several, JAX's coordination service receives the signal wherever it arrives
    and makes all processes agree on the step at which they save.
    """

    def __enter__(self) -> Preemption:
        self.signalled = False
        self.alone = jax.process_count() == 1
        if self.alone:
            self.previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.alone:
            signal.signal(signal.SIGTERM, self.previous)

    def reached(self, step: int) -> bool:
        return self.signalled if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        logging.info("Signal %d: saving at the end of this step.", number)
        self.signalled = True
