"""The order of one source's records: order[i] -> index, a pure function of (seed, i)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np


class Shuffled:
    """Each epoch is a permutation of all records, seeded by `seed`."""

    def __init__(self, size: int, seed: int):
        import grain  # brings JAX; reading a configuration imports the sources, and this file with them

        self.size = size
        self.permutations = grain.MapDataset.range(size).seed(seed).shuffle().repeat(None, reseed_each_epoch=True)

    def __getitem__(self, i: int) -> int:
        return int(self.permutations[i])

    def replacement(self, index: int, rng: np.random.Generator) -> int:
        """A record to replace a bad one."""
        return int(rng.integers(self.size))

    def progress(self, examples: int) -> dict[str, float]:
        """Metrics after a number of examples: how many epochs that is."""
        return {"epoch": examples / self.size}


class Windowed(Shuffled):
    """For records that are read in blocks: each block is read once an epoch instead of once for each record.

    Each epoch shuffles the blocks, takes them `window` at a time, and shuffles the records of these.
    starts: [blocks + 1] the first record of each block, then the number of records.
    """

    def __init__(self, starts: Sequence[int], window: int, seed: int):
        self.starts, self.window, self.seed = np.asarray(starts, np.int64), window, seed
        self.size = int(self.starts[-1])

    def __getitem__(self, i: int) -> int:
        epoch, place = divmod(i, self.size)
        ends = _window_ends(self, epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[window - 1]) if window else 0
        return int(_window_records(self, epoch, window)[place - first])


# Cached for all threads. An entry is small: 8 bytes for each block or window of an epoch, or each record of a window.
@functools.lru_cache(maxsize=256)
def _blocks(order: Windowed, epoch: int) -> np.ndarray:
    return np.random.default_rng((order.seed, epoch)).permutation(len(order.starts) - 1)


@functools.lru_cache(maxsize=256)
def _window_ends(order: Windowed, epoch: int) -> np.ndarray:
    """The places in an epoch at which its windows end."""
    ends = np.cumsum(np.diff(order.starts)[_blocks(order, epoch)])
    return ends[sorted({*range(order.window - 1, len(ends), order.window), len(ends) - 1})]


@functools.lru_cache(maxsize=256)
def _window_records(order: Windowed, epoch: int, window: int) -> np.ndarray:
    blocks = _blocks(order, epoch)[window * order.window : (window + 1) * order.window]
    records = np.concatenate([np.arange(order.starts[block], order.starts[block + 1]) for block in blocks])
    return np.random.default_rng((order.seed, epoch, window)).permutation(records)
