"""Commands in processes that suffer something at a named moment: a signal, a full disk, a folder that disappears.

A process is forked after everything has been imported, so that each costs little. Nothing depends on time: the
process itself does what happens to it, in a call of a function that the test names.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def at_call(place: str, act: Callable[[], Any], *, call: int = 1, result: Callable[[Any], Any] | None = None) -> None:
    """Makes "MODULE:NAME" or "MODULE:CLASS.NAME" call `act` before its call number `call`, counted from 1.

    result: if act's value is to be returned instead of calling the function.
    """
    module, _, path = place.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), [0]

    def called(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, called)


def send(number: int, times: int = 1) -> Callable[[], None]:
    """What sends this process the signal and waits until it is noted; it does not return if the process ends."""

    def act() -> None:
        from clipjax import signals

        for _ in range(times):
            before = signals._noted.count if signals._noted else 0
            os.kill(os.getpid(), number)
            while signals._noted is None or signals._noted.count == before:
                time.sleep(0.01)

    return act


def outcome(arguments: Sequence[str], prepare: Callable[[], None], folder: Path) -> tuple[int, str]:
    """(exit code, output) of a forked `clipjax ARGUMENTS`, for which `prepare` is called first."""
    log = folder / "forked.log"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with open(log, "wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            for number in (signal.SIGINT, signal.SIGTERM):  # what runs in the background ignores Ctrl-C
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False, buffering=1)
            sys.argv = ["clipjax", *arguments]
            prepare()
            from clipjax.__main__ import main

            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 98
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
