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

import numpy as np

from clipjax.config import DataConfig, MixturePart
from clipjax.data.order import Shuffled
from clipjax.data.records import RecordError
from clipjax.data.sources import Source, open_source

MAX_ID = 2**31 - 1


def open_train(data: DataConfig) -> Source:
    """data.mixture where there is one, else data.train. Raises as open_source."""
    return open_mixture(data.mixture) if data.mixture else open_source(data.train)


def open_mixture(mixture: Mapping[str, MixturePart]) -> Mixture:
    return Mixture(
        {name: open_source(part.source) for name, part in mixture.items()},
        {name: part.weight for name, part in mixture.items()},
    )


def make_order(source: Source | Sequence, seed: int) -> Shuffled | Interleaved:
    """What says which record of `source` is example i of a run with this seed."""
    # A mixture, or a source whose records are read in blocks; a plain list of examples is a source too.
    return source.order(seed) if hasattr(source, "order") else Shuffled(len(source), seed)


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
        named = zip(self.names, self.sources, strict=True)
        orders = [make_order(source, _seed_of(seed, name)) for name, source in named]
        return Interleaved(self.names, orders, self.weights)


class Interleaved:
    """order[i] -> index into a Mixture. A pure function of i, the parts' weights and orders.

    Of any first n examples a part with the share w among K parts has n w, give or take 1/2 + w K / 2; where w is no
    multiple of 1 / PERIOD, w is the multiple next to it, less than 4e-6 away. A part's own order depends on the seed
    and its name, so other parts may come and go.
    """

    def __init__(self, names: Sequence[str], orders: Sequence[Shuffled], weights: Sequence[float]):
        self.names, self.parts = names, orders
        self.starts = np.cumsum([0, *(order.size for order in orders)])
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


PERIOD = 252_000  # 2^5 3^2 5^3 7: shares in per mille, thirds, sixths, sevenths and ninths are exact


def places_of(weights: Sequence[float]) -> np.ndarray:
    """[K] int64: how many of a period's places each part has. Sum PERIOD; each less than 1 from its share."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * PERIOD
    # 0.1 / 0.3 is not 1/3: what is a whole number but for rounding is that number.
    exact = np.where(np.abs(exact - np.round(exact)) < 1e-6, np.round(exact), exact)
    counts = np.floor(exact).astype(np.int64)
    most_wanting = np.argsort(counts - exact, kind="stable")
    counts[most_wanting[: PERIOD - counts.sum()]] += 1
    return counts


def interleave(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n] part of each place, [n] how many earlier places are that part's), n = sum of counts.

    The j-th place of a part with the share w wants to be at (j + 1/2) / w; places are dealt in this order. At any
    time t each part then has t w places but for 1/2, and all together t but for K / 2, from which Interleaved's bound
    follows.
    """
    parts = np.repeat(np.arange(len(counts)), counts)
    earlier = np.concatenate([np.arange(count) for count in counts])
    # Equal times come out equal: both numbers are integers below 2^53, and division rounds correctly.
    wanted = (2 * earlier + 1) * counts.sum() / counts[parts]
    order = np.argsort(wanted, kind="stable")
    return parts[order].astype(np.int16), earlier[order].astype(np.int32)
