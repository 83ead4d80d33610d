"""Waiting for what another thread or process does, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SECONDS = 300.0  # after which it is believed to be broken; less than one test may take


def until(condition: Callable[[], Any]) -> Any:
    """The first true value of condition(); fails after SECONDS."""
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, f"not true after {SECONDS:.0f} s"
        time.sleep(0.01)
    return found
