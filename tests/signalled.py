"""A process that sends itself a signal at a named moment, for tests of Ctrl-C and SIGTERM.

    python -m tests.signalled MODULE:NAME NUMBER AFTER COMMAND ARGUMENTS...

MODULE:NAME is the function in whose AFTER-th call the signal arrives, before what it does; "import:MODULE": when the
module is first imported; "compile": while XLA holds the main thread; "callback": in a Python function that C++ calls.
The signal is sent by the process itself, so nothing depends on time.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time


def at_call(place: str, number: int, after: int, times: int = 1) -> None:
    """Replaces MODULE:NAME[.NAME] by a function that sends this process the signal in its call `after`, from 1."""
    module, _, path = place.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), [0]

    def called(*args, **kwargs):
        calls[0] += 1
        if calls[0] == after:
            send(number, times)
        return original(*args, **kwargs)

    setattr(owner, name, called)


def send(number: int, times: int = 1) -> None:
    """Sends this process the signal, and waits until it has been noted; one that ends the process does not return."""
    from clipjax import signals

    for _ in range(times):
        before = signals._noted.count if signals._noted else 0
        os.kill(os.getpid(), number)
        while signals._noted is None or signals._noted.count == before:
            time.sleep(0.01)


class AtImport:
    """A finder that sends the signal when a module is looked for."""

    def __init__(self, module: str, number: int):
        self.module, self.number = module, number

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.module:
            send(self.number)


def in_callback(number: int) -> None:
    """The signal arrives while C++ calls a Python function, whose exceptions C++ would swallow."""
    import jax

    def run(variables, step):
        jax.jit(lambda x: jax.pure_callback(lambda y: (send(number), y)[1], x, x))(1.0).block_until_ready()

    importlib.import_module("clipjax.training.loop").eval_variables = lambda state: run(state, 0)


def main() -> None:
    place, number, after, *arguments = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a test starts in the background would ignore it
    sys.argv = ["clipjax", *arguments]
    kind, _, rest = place.partition(":")
    if kind == "import":
        sys.meta_path.insert(0, AtImport(rest, int(number)))
    elif place == "callback":
        in_callback(int(number))
    else:
        times = 2 if kind == "twice" else 1
        at_call(rest if kind == "twice" else place, int(number), int(after), times)
    from clipjax.__main__ import main as clipjax_main

    clipjax_main()


if __name__ == "__main__":
    main()
