"""k-nearest-neighbour classification on the cosine similarity of frozen features.

Votes are weighted as in Wu et al. (1805.01978) and DINO (2104.14294).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.config import require
from clipjax.config.fields import runtime
from clipjax.config.ranges import COUNT, SCALE_OR_ZERO
from clipjax.eval import features, scores
from clipjax.eval.features import LabelsOf, ProbeConfig
from clipjax.mesh import batch_sharding, batch_shards, replicated, to_host, to_mesh

TILE, CHUNK = 2**12, 2**14  # images to classify and training examples that are compared at a time


@dataclass(frozen=True)
class KNNConfig(ProbeConfig):
    """The options of k-nearest-neighbour classification."""

    name: str = "knn"
    neighbours: tuple[int, ...] = runtime((20, 1, 5, 10), within=COUNT)  # each is reported; top1 is that of the first
    # a neighbour's vote is exp(cosine / temperature); 0: every neighbour has one vote
    temperature: float = runtime(0.07, within=SCALE_OR_ZERO)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        each = (f"top1_k{k}{end}" for k in self.neighbours for end in ("", "_low", "_high"))
        return ("top1", "top1_low", "top1_high", "top5", "mean_per_class_recall", *each, *scores.COUNTS)


def check(
    config: KNNConfig,
    *,
    class_names: Sequence[str] | None = None,
    labels: LabelsOf | None = None,
    others: Mapping[str, tuple[Sequence[str], LabelsOf]] | None = None,
) -> None:
    """Refuses repeated or too many neighbours, and what features.check_probe refuses. Raises ConfigError."""
    require(
        len(config.neighbours) > 0 and len(set(config.neighbours)) == len(config.neighbours),
        f"neighbours={config.neighbours} must be one or more different numbers.",
    )
    features.check_probe(config, class_names=class_names, labels=labels, others=others)
    if others is not None:
        found, whole = others["train"][1]()
        if whole:
            _check_enough(config, int(np.sum(found >= 0)))


def _check_enough(config: KNNConfig, examples: int) -> None:
    require(
        max(config.neighbours) <= examples,
        f"neighbours={config.neighbours}: {config.train.path}, split '{config.train.split}', has only {examples} "
        "labelled records.",
    )


def evaluate(config: KNNConfig, *, mesh: Mesh, **given: Any) -> dict[str, Any]:
    """Accuracy of the vote of the nearest training images. All processes call it together.

    Of neighbours that are equally near the earlier record counts; of classes with equal votes the lower one is
    predicted, as in scikit-learn.

    given: the arguments of features.probe_data.
    Returns top1 with its 95% interval, top5 (the five classes with most votes, which classes without a vote are not
    among) and mean_per_class_recall, all for the first number k of neighbours; top1_kN with its interval for every
    number; scores.COUNTS. Raises ConfigError as features.probe_data does, and for more neighbours than training
    records.
    """
    data = features.probe_data(config, **given)
    _check_enough(config, len(data.train.labels))
    ranks = {k: [] for k in config.neighbours}
    for similarity, index, own in nearest(data.test.x, data.train.x, max(config.neighbours), data.test.labels, mesh):
        for k in config.neighbours:
            classes = data.train.labels[index[:, :k]]
            ranks[k].append(vote_ranks(similarity[:, :k], classes, own, data.classes, config.temperature))
    found, first = {k: np.concatenate(parts) for k, parts in ranks.items()}, config.neighbours[0]
    results = scores.with_interval("top1", found[first] == 0)
    results |= {
        "top5": float(np.mean(found[first] < 5)),
        "mean_per_class_recall": scores.mean_per_class_recall(found[first] == 0, data.test.labels),
    }
    for k, ranks_of_k in found.items():
        results |= scores.with_interval(f"top1_k{k}", ranks_of_k == 0)
    details = {"features": config.features, "neighbours": first, "classes": scores.per_class(data, found[first] == 0)}
    return {**results, **scores.counts(data), "details": details}


def nearest(
    query: np.ndarray, candidate: np.ndarray, k: int, labels: np.ndarray, mesh: Mesh, tile: int = TILE,
    chunk: int = CHUNK,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # fmt: skip
    """Yields ([n, k] cosines in falling order, [n, k] indices of candidates, [n] labels) for tiles of the queries.

    query: [N, D], candidate: [M, D], M >= k. A tile of queries is spread over the mesh; the candidates pass by in
    chunks, so that neither has to fit a device. Cosines are float32, at full precision.
    """
    shards = batch_shards(mesh)
    tile, chunk = -(-min(tile, len(query)) // shards) * shards, max(k, min(chunk, len(candidate)))
    rows, everywhere = batch_sharding(mesh), replicated(mesh)
    query, candidate = features.unit_rows(query), features.unit_rows(candidate)
    for start in range(0, len(query), tile):
        block = query[start : start + tile]
        size = len(block)
        block = to_mesh(np.pad(block, ((0, tile - size), (0, 0))), rows)
        best = to_mesh(np.full((tile, k), -np.inf, np.float32), rows)
        index = to_mesh(np.full((tile, k), -1, np.int32), rows)
        for first in range(0, len(candidate), chunk):
            part = candidate[first : first + chunk]
            count = np.int32(len(part))
            part = to_mesh(np.pad(part, ((0, chunk - len(part)), (0, 0))), everywhere)
            best, index = _nearer(block, best, index, part, np.int32(first), count)
        similarity, found = to_host((best, index))
        yield similarity[:size], found[:size], labels[start : start + size]


@jax.jit
def _nearer(
    query: jax.Array, best: jax.Array, index: jax.Array, part: jax.Array, first: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The k nearest of those so far (best, index [n, k]) and of the chunk; top_k prefers the earlier of equals."""
    number = jnp.arange(len(part), dtype=jnp.int32)
    scores = jnp.matmul(query, part.T, precision="highest")
    scores = jnp.where(number < count, scores, -jnp.inf)
    scores = jnp.concatenate([best, scores], axis=1)
    numbers = jnp.concatenate([index, jnp.broadcast_to(first + number, (len(query), len(part)))], axis=1)
    best, place = jax.lax.top_k(scores, best.shape[1])
    return best, jnp.take_along_axis(numbers, place, axis=1)


def vote_ranks(
    similarity: np.ndarray, voted: np.ndarray, own: np.ndarray, classes: int, temperature: float
) -> np.ndarray:
    """[n]: how many classes have more votes than the right one, or equal ones and a lower number; 0 is a hit.

    similarity, voted: [n, k], the neighbours' cosines and classes; own: [n]. A right class without a vote is wrong,
    whatever k.
    """
    similarity = similarity.astype(np.float64)
    # Only ratios of votes count: the nearest one's is 1, so that a low temperature does not overflow.
    votes = np.exp((similarity - similarity[:, :1]) / temperature) if temperature else np.ones_like(similarity)
    cell = np.arange(len(voted))[:, None] * classes + voted
    totals = np.bincount(cell.ravel(), votes.ravel(), minlength=len(voted) * classes).reshape(-1, classes)
    mine = np.take_along_axis(totals, own[:, None], axis=1)
    ahead = (totals > mine) | ((totals == mine) & (np.arange(classes) < own[:, None]))
    voted_for = (voted == own[:, None]).any(axis=1)
    return np.where(voted_for, ahead.sum(axis=1), scores.WRONG)
