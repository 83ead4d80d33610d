"""Several sources as one, by weights: which record is example i, exactly and at once for any i.

    parts of a period:  a b a a b a ...    places by weight, evenly spread; the same in every period
    example i        -> its part, and how many examples of that part came before it
                     -> that part's own epoch, and the record in that epoch's permutation

So every record of a part comes once in each epoch of that part, whatever the weights, and nothing but i is needed to
go on at example i.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from clipjax.config import DataConfig, MixturePart
from clipjax.data.interleave import PERIOD, interleave, places_of
from clipjax.data.records import RecordError
from clipjax.data.sources import Source, open_source

MAX_ID = 2**31 - 1


def open_train(data: DataConfig) -> Source:
    """data.mixture where there is one, else data.train. Raises as open_source; see clipjax.check for the weights."""
    return open_mixture(data.mixture) if data.mixture else open_source(data.train)


def open_mixture(mixture: Mapping[str, MixturePart]) -> Mixture:
    return Mixture(
        {name: open_source(part.source) for name, part in mixture.items()},
        {name: part.weight for name, part in mixture.items()},
    )


def make_order(source: Source | Sequence, seed: int) -> Shuffled | Interleaved:
    """What says which record of `source` is example i of a run with this seed."""
    return source.order(seed) if isinstance(source, Mixture) else Shuffled(len(source), seed)


class Mixture:
    """The records of all parts, part after part in the order of their names; Interleaved is the order to read them in.

    Keys begin with the part's name. Labels are -1: parts count them differently. A pair_id p of the k-th of K parts
    becomes p K + k, so that equal ids of different parts stay different; RecordError where that is no int32.
    """

    class_names = ()

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float]):
        self.names = sorted(sources)
        self.sources = [sources[name] for name in self.names]
        self.weights = [weights[name] for name in self.names]
        self.starts = np.cumsum([0, *map(len, self.sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, own = self.find(index)
        record = self.sources[part][own]
        name, pair_id = self.names[part], record["pair_id"]
        if pair_id >= 0:
            pair_id = pair_id * len(self.names) + part
            if pair_id > MAX_ID:
                raise RecordError(
                    "pair_id too large",
                    f"pair_id={record['pair_id']} of '{name}' in a mixture of {len(self.names)}, where ids must be "
                    f"below {(MAX_ID - part) // len(self.names) + 1}",
                )
        return {**record, "key": f"{name}/{record['key']}", "label": -1, "pair_id": pair_id}

    def where(self, index: int) -> tuple[str, int]:
        part, own = self.find(index)
        return self.sources[part].where(own)

    def find(self, index: int) -> tuple[int, int]:
        """(part, the record's index in that part)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return part, index - int(self.starts[part])

    def order(self, seed: int) -> Interleaved:
        return Interleaved(dict(zip(self.names, map(len, self.sources), strict=True)), self.weights, seed)


class Shuffled:
    """order[i] -> index: the records of one source, every epoch in a permutation of its own, seeded by `seed`."""

    def __init__(self, size: int, seed: int):
        self.size = size
        self.permutations = grain.MapDataset.range(size).seed(seed).shuffle().repeat(None, reseed_each_epoch=True)

    def __getitem__(self, i: int) -> int:
        return int(self.permutations[i])

    def replacement(self, index: int, rng: np.random.Generator) -> int:
        """The record to take for a bad one."""
        return int(rng.integers(self.size))

    def progress(self, examples: int) -> dict[str, float]:
        """For the metrics: the epochs that the first so many examples are."""
        return {"epoch": examples / self.size}


class Interleaved:
    """order[i] -> index into a Mixture. A pure function of (seed, i), the parts' names, sizes and weights.

    Of any first n examples a part with the share w among K parts has n w, give or take 1/2 + w K / 2; where w is no
    multiple of 1 / PERIOD, w is the multiple next to it, less than 4e-6 away. A part's permutations depend on its name
    and size alone, so other parts may come and go.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Sequence[float], seed: int):
        self.names = list(sizes)
        self.parts = [Shuffled(size, _seed_of(seed, name)) for name, size in sizes.items()]
        self.starts = np.cumsum([0, *sizes.values()])
        self.counts = places_of(weights)
        self.part, self.earlier = interleave(self.counts)

    def __getitem__(self, i: int) -> int:
        period, place = divmod(i, PERIOD)
        part = int(self.part[place])
        seen = period * int(self.counts[part]) + int(self.earlier[place])
        return int(self.starts[part]) + self.parts[part][seen]

    def replacement(self, index: int, rng: np.random.Generator) -> int:
        """The record to take for a bad one: of the same part."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return int(self.starts[part]) + self.parts[part].replacement(index, rng)

    def progress(self, examples: int) -> dict[str, float]:
        """For the metrics: how many of the first so many examples are each part's, and how many epochs that is."""
        periods, place = divmod(examples, PERIOD)
        seen = periods * self.counts + np.bincount(self.part[:place], minlength=len(self.names))
        found: dict[str, float] = {}
        for name, part, count in zip(self.names, self.parts, seen, strict=True):
            found |= {f"epoch/{name}": int(count) / part.size, f"examples/{name}": int(count)}
        return found


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")
