"""Batches made before they are needed, by threads or processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from clipjax.data.bad_records import BadRecord

# Rows of one Grain element. Enough that Grain's cost per element (0.1 ms and more) is small beside decoding the rows;
# few enough that all threads work on the next batch, and that memory does not grow with the batch size.
CHUNK = 32
ENDLESS = 1 << 40

Rows = tuple[dict[str, np.ndarray], list[BadRecord]]


def read_batches(
    examples: Callable[[int, int], Rows],
    *,
    rows: int,
    first: int,
    stride: int,
    num_batches: int = ENDLESS,
    num_threads: int,
    worker_count: int = 0,
) -> Iterator[Rows]:
    """examples(first + s * stride, rows) for s = 0, 1, ..., in order.

    num_threads threads of this process make parts of batches ahead of their use. With worker_count > 0, that many
    processes of num_threads threads each do so instead, and everything in `examples` must be picklable. Exceptions of
    `examples` are raised here, and a worker's death raises one. Workers end with this process, even if it is killed.
    """
    chunks = Chunks(examples, rows, first, stride, num_batches)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    dataset = grain.MapDataset.source(chunks).to_iter_dataset(options)
    if worker_count:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which users of the library may never parse
        workers = grain.MultiprocessingOptions(num_workers=worker_count, per_worker_buffer_size=4)
        dataset = dataset.mp_prefetch(workers)
    return _joined(iter(dataset), chunks.per_batch)


class Chunks:
    """chunks[k]: part k % per_batch of batch k // per_batch."""

    def __init__(self, examples: Callable[[int, int], Rows], rows: int, first: int, stride: int, num_batches: int):
        self.examples, self.rows, self.first, self.stride, self.num_batches = examples, rows, first, stride, num_batches
        self.per_batch = -(-rows // CHUNK)
        self.owner = os.getpid()

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        parent = multiprocessing.parent_process()
        if parent is not None and self.owner != os.getpid():
            with contextlib.suppress(ValueError):  # Ctrl-C in a terminal reaches it too, but its run ends it
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            # A worker waits for room in its queue. If the run is killed, it would wait forever.
            threading.Thread(target=_end_with, args=(parent,), name="end_with_the_run", daemon=True).start()

    def __len__(self) -> int:
        return self.num_batches * self.per_batch

    def __getitem__(self, k: int) -> Rows:
        batch, part = divmod(k, self.per_batch)
        start = part * CHUNK
        return self.examples(self.first + batch * self.stride + start, min(CHUNK, self.rows - start))


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _joined(chunks: Iterator[Rows], per_batch: int) -> Iterator[Rows]:
    while True:
        parts = []
        for chunk in chunks:
            parts.append(chunk)
            if len(parts) == per_batch:
                break
        else:
            return
        columns = [columns for columns, _ in parts]
        batch = columns[0] if per_batch == 1 else {k: np.concatenate([c[k] for c in columns]) for k in columns[0]}
        yield batch, [record for _, bad in parts for record in bad]
