"""Hears what Orbax announces as deprecated: lines of its log and events that it records, rarely Python's warnings.

pyproject.toml makes errors of Python's warnings of deprecation.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from logging import WARNING, Handler, LogRecord, getLogger

from absl import logging  # before its logger is asked for: it has a class of its own  # noqa: F401

EVENTS = "/jax/orbax/deprecation/"
WORDS = re.compile(r"deprecat|legacy api|will be removed|no longer supported", re.IGNORECASE)
LIBRARIES = ("/orbax/", "/jax/", "/flax/", "/optax/", "/grain/")


class _Ear(Handler):
    def __init__(self, found: list[str]):
        super().__init__(WARNING)
        self.found = found

    def emit(self, record: LogRecord) -> None:
        path, message = record.pathname.replace("\\", "/"), record.getMessage()
        ours = not any(f"/site-packages{name}" in path for name in LIBRARIES)
        if not ours and WORDS.search(message) and _ears[-1] is self:
            self.found.append(f"{path}:{record.lineno}: {message}")

    def hear(self, event: str, **_) -> None:
        if event.startswith(EVENTS) and _ears[-1] is self:
            self.found.append(event)


_ears: list[_Ear] = []  # the innermost block hears


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The list of what is announced in the block. Events are heard where JAX was imported before it."""
    ear, monitoring = _Ear([]), getattr(sys.modules.get("jax"), "monitoring", None)
    _ears.append(ear)
    with contextlib.ExitStack() as stack:
        stack.callback(_ears.pop)
        for logger in map(getLogger, ("absl", "jax")):
            logger.addHandler(ear)
            stack.callback(logger.removeHandler, ear)
            # A command run in the block filters out what Orbax logs, and would do so for all tests that follow.
            stack.callback(logger.filters.__setitem__, slice(None), logger.filters[:])
        if monitoring:
            monitoring.register_event_listener(ear.hear)
            stack.callback(monitoring.unregister_event_listener, ear.hear)
        yield ear.found
