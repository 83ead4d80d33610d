"""Several sources mixed by weight: which record is example i, exact and computed directly for any i.

    parts of a period:  a b a a b a ...    places by weight, evenly spread; the same in every period
    example i        -> its part, and the number of earlier examples of that part
                     -> the part's epoch, and the record in that epoch's permutation

So each record of a part comes once in each epoch of that part, whatever the weights. A run can continue at any example
i; it needs to know nothing but i.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.config import ConfigError, DataConfig, MixturePart, require
from clipjax.data.order import Shuffled
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import Source, open_source
from clipjax.storage import StorageError
from clipjax.storage.data_cache import use_cache

MAX_ID = 2**31 - 1


def open_train(data: DataConfig) -> Source:
    """Opens data.mixture if it has parts, else data.train. Raises as open_source does, beginning with the field."""
    use_cache(data.cache_dir, data.cache_gib)
    if data.mixture:
        return open_mixture(data.mixture)
    with errors_of("config.data.train"):
        return _of_true_captions(open_source(data.train), data.train.path)


def open_mixture(mixture: Mapping[str, MixturePart]) -> Mixture:
    """Opens all parts. Raises as open_source does, beginning with the part's field."""
    sources = {}
    for name, part in mixture.items():
        with errors_of(f"config.data.mixture.{name}.source"):
            sources[name] = _of_true_captions(open_source(part.source), part.source.path)
    return Mixture(sources, {name: part.weight for name, part in mixture.items()})


def _of_true_captions(source: Source, path: str) -> Source:
    require(
        not getattr(source, "has_false_captions", False),
        f"{path} is a set of true and false captions, which only the evaluator 'compositional' can tell apart: trained "
        "on, false captions would count as right. Name data of true captions.",
    )
    return source


@contextlib.contextmanager
def errors_of(field: str) -> Iterator[None]:
    """Begins the message of an error about a source with the field that names the source."""
    try:
        yield
    except (ConfigError, ManifestError) as error:
        raise type(error)(f"{field}: {error}") from error
    except StorageError as error:
        raise StorageError(f"{field}: {error}", error.kind) from error


def make_order(source: Source | Sequence, seed: int) -> Shuffled | Interleaved:
    """order[i]: the index of the record that is example i of a run with this seed."""
    # Mixtures, and sources whose records are read in blocks, have an order. A plain list of examples is a source too.
    return source.order(seed) if hasattr(source, "order") else Shuffled(len(source), seed)


def crowded(source: Source, batch_size: int) -> list[tuple[str, int, int]]:
    """[(part, its examples in a batch, its records)] where a batch has more of them; "" for a source without parts."""
    if not isinstance(source, Mixture):
        return [("", batch_size, len(source))] if batch_size > len(source) else []
    shares = places_of(source.weights) / PERIOD * batch_size
    parts = zip(source.names, shares, source.sources, strict=True)
    return [(name, round(share), len(part)) for name, share, part in parts if round(share) > len(part)]


def fetch_ahead(source: Source | Sequence, indices: Sequence[int]) -> None:
    """Has a source in a bucket read these records at the same time; the source[index] of each must follow."""
    if hasattr(source, "fetch_ahead"):
        source.fetch_ahead(indices)


class Mixture:
    """The records of all parts, one part after another in the order of their names. `order` interleaves them.

    Keys begin with the part's name. Labels are -1, because each part counts its own. A pair_id p of the k-th of K parts
    becomes p K + k, so that ids of different parts stay different; one that is then above int32 raises RecordError.
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

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Has each part read its records of these at the same time, where they lie in a bucket."""
        own: dict[int, list[int]] = {}
        for part, index in map(self.find, indices):
            own.setdefault(part, []).append(index)
        for part, wanted in own.items():
            fetch_ahead(self.sources[part], wanted)

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
    """order[i]: index into a Mixture. A pure function of i, the parts' weights and the parts' orders.

    Among the first n examples, for any n, a part with the share w of K parts has n w, to within 1/2 + w K / 2. Shares
    are rounded to multiples of 1 / PERIOD, which moves them by less than 4e-6. A part's own order depends on the seed
    and the part's name, so adding or removing other parts does not change it.
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
        """A record of the same part, to replace a bad one."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return int(self.starts[part]) + self.parts[part].replacement(index, rng)

    def progress(self, examples: int) -> dict[str, float]:
        """Metrics after a number of examples: how many are from each part, and how many epochs of it that is."""
        periods, place = divmod(examples, PERIOD)
        seen = periods * self.counts + np.bincount(self.part[:place], minlength=len(self.names))
        metrics: dict[str, float] = {}
        for name, part, count in zip(self.names, self.parts, seen, strict=True):
            metrics |= {f"epoch/{name}": int(count) / part.size, f"examples/{name}": int(count)}
        return metrics


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


PERIOD = 252_000  # 2^5 3^2 5^3 7: shares in per mille, thirds, sixths, sevenths and ninths are exact


def places_of(weights: Sequence[float]) -> np.ndarray:
    """[K] int64: the number of places of each part in a period. They sum to PERIOD, each within 1 of its share."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * PERIOD
    # 0.1 / 0.3 is not exactly 1/3: a number that only rounding errors keep from being whole is taken as whole.
    exact = np.where(np.abs(exact - np.round(exact)) < 1e-6, np.round(exact), exact)
    counts = np.floor(exact).astype(np.int64)
    largest_remainder_first = np.argsort(counts - exact, kind="stable")
    counts[largest_remainder_first[: PERIOD - counts.sum()]] += 1
    return counts


def interleave(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n] part of each place, [n] number of earlier places of that part), n = sum of counts.

    The ideal time of the j-th place of a part with the share w is (j + 1/2) / w, and places are sorted by it. At any
    time t each part then has t w places to within 1/2, and all K parts together t to within K / 2. Interleaved's bound
    follows from these two.
    """
    parts = np.repeat(np.arange(len(counts)), counts)
    earlier = np.concatenate([np.arange(count) for count in counts])
    # Equal times compare equal: both numbers are integers below 2^53, and division rounds correctly.
    ideal = (2 * earlier + 1) * counts.sum() / counts[parts]
    order = np.argsort(ideal, kind="stable")
    return parts[order].astype(np.int16), earlier[order].astype(np.int32)


def check_mixture(data: DataConfig) -> None:
    """Refuses weights that are not positive, and a mixture together with a source. Raises ConfigError."""
    where, weights = "config.data.mixture", {name: part.weight for name, part in data.mixture.items()}
    require(
        not weights or not data.train.path,
        f"{where} has the parts {', '.join(weights)}, and config.data.train.path='{data.train.path}' is set as well: "
        "training reads one or the other. Make it a part, or set config.data.train.path=''.",
    )
    for name, weight in weights.items():
        require(
            weight / sum(weights.values()) * PERIOD >= 1,
            f"{where}.{name}.weight={weight} of {sum(weights.values()):g} in all is less than one example in {PERIOD}; "
            "raise it, or leave the part out.",
        )
