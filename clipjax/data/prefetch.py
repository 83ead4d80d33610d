"""Moves batches to the mesh before the step that needs them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Sharding

POLL_SECONDS = 0.005


def prefetch_to_mesh(
    batches: Iterator[tuple[dict, Any]], sharding: Sharding, depth: int, busy: Callable[[], bool] = lambda: False
) -> Iterator[tuple[dict[str, jax.Array], Any, float]]:
    """(local batch, extra) -> (global batch, extra, seconds waited for the batch), `depth` batches ahead.

    The rows of all processes together are the global batch, laid out by `sharding`. A thread does the work; its
    exceptions are raised here, at the batch they belong to. close() ends the thread.

    busy: whether the devices still work on earlier steps. While they do, nobody waits for the batch.
    """
    ready: queue.Queue = queue.Queue(maxsize=max(depth, 1))
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch, extra in batches:
                put((jax.make_array_from_process_local_data(sharding, batch), extra, None))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put((None, None, error))

    thread = threading.Thread(target=work, name="prefetch_to_mesh", daemon=True)
    thread.start()
    try:
        while True:
            item, waited = _get(ready, busy)
            if item is None:
                return
            batch, extra, error = item
            if error is not None:
                raise error
            yield batch, extra, waited
    finally:
        stop.set()
        thread.join(timeout=5)


def _get(ready: queue.Queue, busy: Callable[[], bool]) -> tuple[Any, float]:
    """(the next item, the seconds that idle devices waited for it, to within POLL_SECONDS)."""
    started = time.perf_counter()
    while busy():
        try:
            return ready.get(timeout=POLL_SECONDS), 0.0
        except queue.Empty:
            started = time.perf_counter()
    item = ready.get()
    return item, time.perf_counter() - started
