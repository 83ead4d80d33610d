"""Preemption: a cluster sends SIGTERM before it takes a machine away, and all processes notice it at the same step."""

from __future__ import annotations

import contextlib
import os
import sys

import jax
from jax.experimental import multihost_utils

from clipjax import signals
from clipjax.processes import forward_preemption


class Preemption:
    """Context manager that notices SIGTERM and Ctrl-C: `reached(step)` becomes true after it, on all processes at the
    same step. A second signal ends the process at once.

    With several processes, JAX's coordination service makes all of them agree on the step at which they save, whichever
    of them the signal has reached.
    """

    def __enter__(self) -> Preemption:
        self.alone = jax.process_count() == 1
        self.exits = contextlib.ExitStack()
        self.noted = self.exits.enter_context(signals.noting(act=self._tell))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.exits.close()

    @property
    def signalled(self) -> bool:
        """Whether a signal has arrived at this process."""
        return bool(self.noted.number)

    def reached(self, step: int) -> bool:
        return self.signalled if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def _tell(self, number: int) -> None:
        if not self.alone:
            forward_preemption()
        if sys.stderr.isatty():  # a log gets the line about the saved step alone
            line = f"{signals.name_of(number)}: saving after this step; once more ends the run at once.\n"
            os.write(sys.stderr.fileno(), line.encode())
