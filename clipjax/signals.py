"""Ctrl-C, SIGTERM and a closed terminal, at any moment: one line and a documented exit code (docs/reliability.md).

Python runs a signal's handler in the main thread and between two of its own instructions: not while XLA compiles, and
an exception that it raises inside a callback of C++ is printed and forgotten. So the handlers here do nothing. The
number of each signal is also written to a pipe; a thread reads it, and ends the process with one line, or leaves the
signal to a `with noting()` block that saves its work first. A process may end anywhere, as after kill -9, because files
are written whole or not at all.

SIGUSR2 ends nothing: it asks for a profile (clipjax/training/profile.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REQUEST = signal.SIGUSR2
LAST_SECONDS = 5.0  # that the last line and the tidying up may take, for example when nobody reads the output

_command = ""  # the command that install was called for; "" before
_noted: Noted | None = None  # of the `with noting()` block that is being executed
_requested = False  # whether REQUEST has arrived, and nobody has asked
_last = 0  # the last signal that was left to such a block
_sayings: list[tuple[str | Callable[[], str], bool]] = []
_tidying: list[Callable[[str], object]] = []


class Noted:
    """The signals that have arrived in a `with noting()` block."""

    def __init__(self, most: int, act: Callable[[int], None]):
        self.most, self.acts = most, [act]
        self.number = 0  # of the first signal; 0: none
        self.count = 0

    def take(self, number: int) -> bool:
        """Notes a signal; False when there have been `most` before."""
        global _last
        if self.count >= self.most:
            return False
        self.number = self.number or number
        self.count += 1
        _last = number
        for act in list(self.acts):
            act(number)
        return True


def install(command: str) -> None:
    """From here on, signals end this process with one line, except in `with noting()` blocks. Called once.

    command: as a user types it, for the line. A signal that the caller ignores, as nohup and shells do for processes in
    the background, stays ignored.
    """
    global _command
    _command = command
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*NUMBERS, REQUEST):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _nothing)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_read, args=(reader,), name="signals", daemon=True).start()


def quiet_threads() -> None:
    """Exceptions of threads in the background are not printed: what matters of them is raised in the main thread.

    Others are consequences, such as the hundreds of callbacks of TensorStore after a failed write. Those of the main
    thread are printed where they are caught.
    """
    sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *args: None


def installed() -> bool:
    """Whether install has been called in this process."""
    return bool(_command)


def name_of(number: int) -> str:
    """What a user calls a signal: "Ctrl-C", "SIGTERM"."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def take_request() -> bool:
    """Whether REQUEST has arrived since the last call, in a process that has called install."""
    global _requested
    taken, _requested = _requested, False
    return taken


def last() -> int:
    """The last signal that a `with noting()` block has noted; 0 for none."""
    return _last


@contextlib.contextmanager
def noting(most: int = 1, act: Callable[[int], None] = lambda number: None) -> Iterator[Noted]:
    """Leaves the first `most` signals to the block, which looks at what this yields, and last after its end.

    act: called with each of them, in another thread. The signal after them ends the process. A block inside another
    one yields the outer block's, and its act hears of the first signal even if that arrived before. Where install has
    not been called, as in a notebook, only the main thread sees signals.
    """
    global _noted
    if outer := _noted:
        outer.acts.append(act)
        try:
            if outer.number:
                act(outer.number)
            yield outer
        finally:
            outer.acts.remove(act)
        return
    noted = Noted(most, act)
    with contextlib.nullcontext() if _command else _own_handlers(noted):
        _noted = noted
        try:
            yield noted
        finally:
            _noted = None


@contextlib.contextmanager
def saying(text: str | Callable[[], str], *, saved: bool = False) -> Iterator[None]:
    """What the line of a process that is ended in this block says after the signal's name.

    saved: there is nothing to lose or to repeat any more, so that SIGTERM ends the process with 0.
    """
    _sayings.append((text, saved))
    try:
        yield
    finally:
        _sayings.pop()


@contextlib.contextmanager
def tidying(act: Callable[[str], object]) -> Iterator[None]:
    """Calls act with the signal's name, in another thread, before a signal ends the process in this block."""
    _tidying.append(act)
    try:
        yield
    finally:
        _tidying.remove(act)


def end(number: int) -> None:
    """Ends the process with the line of a signal, as if it had arrived now."""
    text, saved = _sayings[-1] if _sayings else (f"{_command} stopped.", False)
    code = 0 if saved and number != signal.SIGINT else 128 + number

    def last_words() -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            os.write(2, f"{name_of(number)}: {text if isinstance(text, str) else text()}\n".encode())
        for act in reversed(_tidying):
            with contextlib.suppress(Exception):
                act(name_of(number))

    _in_time(last_words)
    os._exit(code)


def tidy(reason: str) -> None:
    """What blocks of `tidying` do before this process ends for another reason than a signal."""

    def acts() -> None:
        for act in reversed(_tidying):
            with contextlib.suppress(Exception):
                act(reason)

    _in_time(acts)


def _in_time(work: Callable[[], None]) -> None:
    """Does it in a thread of its own, because the main thread may hold the lock of a stream that nobody reads."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LAST_SECONDS)


def _read(reader: int) -> None:
    global _requested
    while True:
        for number in os.read(reader, 64):
            _requested = _requested or number == REQUEST
            noted = _noted
            if number in NUMBERS and not (noted and noted.take(number)):
                end(number)


def _nothing(number: int, frame: Any) -> None:
    """The handler: the pipe has the signal's number already."""


def _forget() -> None:
    """In a forked process, which shares the pipe: signals to it are not its parent's."""
    signal.set_wakeup_fd(-1)
    for number in (*NUMBERS, REQUEST):
        if signal.getsignal(number) is _nothing:
            signal.signal(number, signal.SIG_IGN if number in (signal.SIGINT, REQUEST) else signal.SIG_DFL)


@contextlib.contextmanager
def _own_handlers(noted: Noted) -> Iterator[None]:
    """Handlers for one block, in a process that has not called install."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    before = {n: old for n, old in before.items() if old != signal.SIG_IGN or n == signal.SIGTERM}

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    def handler(number: int, frame: Any) -> None:
        if not noted.take(number):
            restore()
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        restore()
