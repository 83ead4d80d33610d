"""A sink's own thread: training hands over its numbers and goes on, whatever the sink does with them."""

from __future__ import annotations

import collections
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clipjax.files import printable
from clipjax.runs.sinks.sink import GivesUp, Sink

RETRY_SECONDS = (10.0, 600.0)  # from the first try after a failure to the next; doubled up to the second
MOST_WAITING = 20_000  # lines that wait for a sink that fails; of more, the oldest are dropped
MOST_PICTURES = 200
# How long the end of a run waits for a sink. A killed run has few seconds left.
LAST_SECONDS = {"finished": 300.0, "failed": 30.0, "killed": 10.0}


def warn(line: str) -> None:
    """Prints a line on stderr."""
    print(f"warning: {printable(line)}", file=sys.stderr, flush=True)


class Delivery:
    """Hands calls to a sink, in order, from one thread. open: makes the sink, in that thread.

    After an error one warning is printed, and the call is made again later, until it succeeds or the run ends. Pictures
    and files that fail are left out. say: takes the lines.
    """

    def __init__(
        self,
        title: str,
        open: Callable[[], Sink],  # noqa: A002
        *,
        say: Callable[[str], None] = warn,
        retry: tuple[float, float] = RETRY_SECONDS,
    ):
        self.title, self.open, self.say, self.retry = title, open, say, retry
        self.sink: Sink | None = None
        self.calls: collections.deque[tuple[str, tuple]] = collections.deque()
        self.change = threading.Condition()
        self.closing = self.dead = self.failing = False
        self.lost = 0  # lines
        self.left_out: set[str] = set()  # methods of which a failure was told
        self.thread = threading.Thread(target=self._work, name=f"sink {title}", daemon=True)
        self.thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands over a line."""
        self._put("write", (step, dict(values), time.time()))

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Hands over a picture."""
        if len(self.calls) < MOST_PICTURES:
            self._put("picture", (name, step, pixels))

    def file(self, name: str, data: bytes) -> None:
        """Hands over a file."""
        self._put("file", (name, data))

    def close(self, status: str) -> None:
        """Ends the sink after what it has been given; join waits for it."""
        self._put("close", (status,))
        with self.change:
            self.closing = True
            self.change.notify()

    def join(self, status: str) -> None:
        """Returns when the sink has ended, or has had long enough."""
        self.thread.join(LAST_SECONDS[status])
        if self.thread.is_alive():
            self.say(f"{self.title}: not all was delivered in {LAST_SECONDS[status]:.0f} s; metrics.jsonl has it.")

    def _put(self, method: str, arguments: tuple) -> None:
        with self.change:
            if self.dead or self.closing:
                return
            if len(self.calls) >= MOST_WAITING:
                self.calls.popleft()
                self.lost += 1
            self.calls.append((method, arguments))
            self.change.notify()

    def _work(self) -> None:
        try:
            while self._deliver_next():
                pass
        except GivesUp as error:
            self.say(f"{self.title}: {_line(error)}; training goes on without it, and metrics.jsonl has everything.")
        with self.change:
            self.dead = True
            self.lost += sum(method == "write" for method, _ in self.calls)
            self.calls.clear()
        if self.lost and self.failing:
            self.say(f"{self.title}: {self.lost} lines were not delivered; metrics.jsonl has them.")

    def _deliver_next(self) -> bool:
        """Makes one call, as often as needed; returns whether there will be another."""
        with self.change:
            self.change.wait_for(lambda: self.calls)
            method, arguments = call = self.calls[0]
        wait = self.retry[0]
        while not self._try(method, arguments):
            with self.change:
                if self.closing:  # no time to wait for better times
                    return False
                self.change.wait_for(lambda: self.closing, wait)
            wait = min(2 * wait, self.retry[1])
        with self.change:
            if self.calls and self.calls[0] is call:
                self.calls.popleft()
        return method != "close"

    def _try(self, method: str, arguments: tuple) -> bool:
        """Makes a call; returns whether it is settled. Raises GivesUp."""
        try:
            if self.sink is None:
                self.sink = self.open()
            getattr(self.sink, method)(*arguments)
        except GivesUp:
            raise
        except Exception as error:
            if self.sink is not None and method in ("picture", "file"):
                if method not in self.left_out:
                    self.left_out.add(method)
                    self.say(f"{self.title}: a {method} was left out: {_line(error)}")
                return True
            if not self.failing:
                self.failing = True
                self.say(f"{self.title}: {_line(error)}; training goes on, and it is tried again later.")
            return False
        if self.failing:
            self.failing = False
            self.say(f"{self.title}: it works again.")
        return True


def _line(error: Any) -> str:
    """The first line of an error, without the number of a system's."""
    cause = error.__cause__ if isinstance(error, GivesUp) and error.__cause__ else error
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}: '{cause.filename}'" if cause.filename else cause.strerror
    text = " ".join(str(error).split("\n")[0].split())[:300]
    return text.rstrip(".") or type(error).__name__
