"""What the processes of a run tell each other besides arrays: small values and failures.

When one process fails, the others report it and stop instead of waiting in a collective forever. A process that fails
in Python leaves a message in the key-value store of JAX's coordination service, which the others read every second. One
that is killed leaves none: the service misses its heartbeats and ends the others with a message that names it.

The first process also prints what all of them have to say: announce.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipjax import signals
from clipjax.files import message_text, printable
from clipjax.jax_private import coordination_client

# A process without a heartbeat for this long counts as dead, and XLA ends all others. JAX's own default is 100.
HEARTBEAT_SECONDS = 30
POLL_SECONDS = 1.0
TELL_SECONDS = 30.0  # before the processes that others wait for are named
MEETING_SECONDS = 2 * 3600.0  # that processes wait for one another before the first collective of a kind
LONGEST_WAIT = 7 * 24 * 3600
FOLDER = "clipjax/stopped"
_met: set[str] = set()
_waits = itertools.count()  # each barrier needs a new name; all processes pass the same barriers in the same order


@contextlib.contextmanager
def stopping_together() -> Iterator[None]:
    """Wraps the work of a process: an exception in it, or in any other process, ends all within HEARTBEAT_SECONDS.

    Does nothing for a run of one process. With several, a failing process does not exit in the usual way, where JAX
    would wait for the others: it prints its error and exits with 1.
    """
    if jax.process_count() == 1:
        yield
        return
    client = store()
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(client, done), name="peers", daemon=True)
    watcher.start()
    try:
        with signals.tidying(lambda name: (_tell_peers(client, name), _wait_for_readers())):
            yield
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A process that another one has left in a collective hears of its reason soon, and ends with that line.
            time.sleep(3 * POLL_SECONDS)
        _print(error)
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely the consequence of another process's death: give it, or the service, time to name it.
            time.sleep(HEARTBEAT_SECONDS + 10)
        done.set()
        _leave(client, error)
    finally:
        done.set()


def run_child(command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """subprocess.run with the output as text; a signal that ends this process ends the child too."""
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        with signals.tidying(lambda _: child.kill()):
            output, errors = child.communicate()
    return subprocess.CompletedProcess(command, child.returncode, output, errors)


def wait_for_all() -> None:
    """Returns when every process has called it; raises after LONGEST_WAIT seconds.

    For processes that may arrive hours apart, when a collective would have given up (on CPU, by XLA's
    xla_cpu_collective_timeout_seconds). A process that fails or dies meanwhile ends the wait, as it ends the run.
    """
    if jax.process_count() > 1:
        store().wait_at_barrier(f"clipjax/wait_for_all/{next(_waits)}", LONGEST_WAIT * 1000)


def meet(what: str) -> None:
    """Returns when every process has called it with this `what`; the second call with it returns at once.

    For the first collective of a kind. Gloo, which connects the processes of CPUs, gives up when they reach it 30
    seconds apart, and they may be as far apart as one compiles, or indexes its data, longer than another. After
    TELL_SECONDS, process 0 prints which are missing. Raises PeersError after MEETING_SECONDS.
    """
    count = jax.process_count()
    if count == 1 or what in _met:
        return
    _met.add(what)
    client, folder, started, told = store(), f"clipjax/meet/{what}", time.monotonic(), False
    client.key_value_set(f"{folder}/{jax.process_index()}", socket.gethostname())
    wait = 0.05
    while True:
        present = {int(name.rpartition("/")[2]) for name, _ in client.key_value_dir_get(folder)}
        missing = ", ".join(str(index) for index in range(count) if index not in present)
        waited = time.monotonic() - started
        if not missing:
            return
        if waited > MEETING_SECONDS:
            raise PeersError(
                f"Of {count} processes, these did not reach {what} in {duration(MEETING_SECONDS)}: {missing}. See what "
                "they are doing, and start all processes again."
            )
        if waited > TELL_SECONDS and not told:
            told = True
            announce(f"Waiting for other processes before {what}. Missing of {count}: {missing}")
        time.sleep(wait)
        wait = min(2 * wait, POLL_SECONDS)


class PeersError(RuntimeError):
    """Other processes of the run did not come; the message names them."""


def gather_json(value: Any) -> list[Any]:
    """Every process's value, on every process, in process order."""
    if jax.process_count() == 1:
        return [value]
    meet("the first exchange")
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size]).decode()) for row, size in zip(rows, lengths, strict=True)]


class Largest:
    """largest((7, 2)) -> the largest first and the largest second value of any process, without a collective.

    All processes make it, and call it equally often, each from one thread, also beside collectives of other threads.
    close(), from another thread, ends a call that waits with PeersError.
    """

    def __init__(self) -> None:
        self.folder, self.calls, self.closed = f"clipjax/largest/{next(_waits)}", 0, threading.Event()
        self.close = self.closed.set

    def __call__(self, values: Sequence[int]) -> tuple[int, ...]:
        count, index = jax.process_count(), jax.process_index()
        if count == 1:
            return tuple(values)
        client, here = store(), f"{self.folder}/{self.calls}"
        if index:
            client.key_value_set(f"{here}/{index}", json.dumps(values))
            largest = self._wait(client, f"{here}/largest")
        else:
            others = [self._wait(client, f"{here}/{other}") for other in range(1, count)]
            largest = tuple(map(max, zip(values, *others, strict=True)))
            client.key_value_set(f"{here}/largest", json.dumps(largest))
            if self.calls:  # all have read the last exchange's, or they would not be in this one
                client.key_value_delete(f"{self.folder}/{self.calls - 1}/")
        self.calls += 1
        return largest

    def _wait(self, client: Any, key: str) -> tuple[int, ...]:
        while not self.closed.is_set():
            try:
                return tuple(json.loads(client.blocking_key_value_get(key, int(POLL_SECONDS * 1000))))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        raise PeersError("Closed while it waited for other processes.")


def _leave(client: Any, error: BaseException) -> None:
    """Tells the other processes and ends this one."""
    first_line = str(error).splitlines()[0] if str(error) else ""
    _tell_peers(client, f"{type(error).__name__}: {first_line}")
    _exit(1)


def _tell_peers(client: Any, reason: str) -> None:
    """Lets the other processes end with this one, because of `reason`."""
    with contextlib.suppress(Exception):  # the service itself may be gone
        client.key_value_set(f"{FOLDER}/{jax.process_index()}", f"{socket.gethostname()} stopped: {reason}")


def _watch(client: Any, done: threading.Event) -> None:
    while not done.wait(POLL_SECONDS):
        try:
            messages = client.key_value_dir_get(FOLDER)
        except Exception:  # the service is gone, which JAX's client reports itself
            continue
        if messages and not done.is_set():
            name, reason = messages[0]
            print(
                f"error: process {name.rpartition('/')[2]} on {reason}\nProcess {jax.process_index()} on "
                f"{socket.gethostname()} stops because of it. Start all processes again; training continues from "
                "the last checkpoint.",
                file=sys.stderr,
                flush=True,
            )
            _exit(1)


def _print(error: BaseException) -> None:
    if type(error).__module__.startswith("clipjax."):
        print(f"error: {message_text(error)}", file=sys.stderr, flush=True)
        return
    traceback.print_exception(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"error: process {jax.process_index()} could not continue; if another process died, its name follows "
            f"within {HEARTBEAT_SECONDS + 10} s.",
            file=sys.stderr,
            flush=True,
        )


def _exit(code: int) -> None:
    """Exits at once; the usual way would wait at a barrier for processes that will not come."""
    _wait_for_readers()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _wait_for_readers() -> None:
    if jax.process_index() == 0:
        time.sleep(3 * POLL_SECONDS)  # this process serves the store, and the others need a moment to read it


def take_back_sigterm() -> None:
    """After jax.distributed.initialize, whose service takes SIGTERM for itself: gives it back to clipjax.signals.

    The service would note it and do nothing until a training step asks; forward_preemption tells the service.
    """
    global _service_handler
    address_of = ctypes.pythonapi.PyOS_getsig
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.c_int]
    own = signal.getsignal(signal.SIGTERM)
    if jax.process_count() > 1 and own is not None and signals.installed():
        _service_handler = address_of(signal.SIGTERM)
        signal.signal(signal.SIGTERM, own)


def forward_preemption() -> None:
    """Tells JAX's coordination service that this process is to be preempted, as SIGTERM would."""
    if _service_handler:
        ctypes.CFUNCTYPE(None, ctypes.c_int)(_service_handler)(signal.SIGTERM)


_service_handler: int | None = None  # the address of the service's own handler of SIGTERM


def store() -> Any:
    """The client of the coordination service's key-value store; None for a process that runs alone."""
    return coordination_client()


def duration(seconds: float) -> str:
    """3725 -> '1h 02m', 65 -> '1m 05s', 7 -> '7s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def announce(line: str) -> None:
    """Prints a line on the first process only; nothing for ""."""
    if line and jax.process_index() == 0:
        print(printable(line, lines=False), flush=True)
