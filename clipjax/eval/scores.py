"""Scores of the probes: ranks of a linear classifier on a mesh, metrics of ranks, and the search for a penalty."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.eval.features import ProbeData
from clipjax.eval.intervals import wilson_interval
from clipjax.mesh import batch_sharding, batch_shards, replicated, to_host, to_mesh

MAX_SCORES = 2**26  # scores that exist at a time, over all devices: 512 MiB in float64
WRONG = 2**30  # the rank of an example whose own score is not finite, however few classes there are


def linear_ranks(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, labels: np.ndarray, mesh: Mesh) -> np.ndarray:
    """[N] int: how many classes a linear classifier puts before each example's own; 0 is a hit.

    x: [N, D]; kernel: [D, C]; bias: [C], in float32 or float64, which the scores are computed in. Of equal scores the
    lowest class comes first, as for an argmax; a score that is not a number comes before all others, and an example
    whose own score is not finite is wrong. Rows are spread over the mesh. All processes call it together.
    """
    shards = batch_shards(mesh)
    tile = -(-min(max(1, MAX_SCORES // len(bias)), len(x)) // shards) * shards
    rows, everywhere, tiles = batch_sharding(mesh), replicated(mesh), []
    with jax.enable_x64(kernel.dtype == np.float64):
        weights, offset = to_mesh(kernel, everywhere), to_mesh(bias, everywhere)
        for start in range(0, len(x), tile):
            block, own = x[start : start + tile], labels[start : start + tile]
            pad = tile - len(block)
            block, own = np.pad(block, ((0, pad), (0, 0))), np.pad(own, (0, pad)).astype(np.int32)
            ranks = _linear_ranks(to_mesh(block, rows), weights, offset, to_mesh(own, rows))
            tiles.append(to_host(ranks)[: tile - pad])
    return np.concatenate(tiles)


@jax.jit
def _linear_ranks(x: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
    scores = jnp.matmul(x.astype(kernel.dtype), kernel, precision="highest") + bias
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    behind = (scores < own) | ((scores == own) & (jnp.arange(len(bias)) >= labels[:, None]))
    ahead = jnp.sum(~behind, axis=1, dtype=jnp.int32)
    return jnp.where(jnp.isfinite(own[:, 0]), ahead, WRONG)


def mean_per_class_recall(hits: np.ndarray, labels: np.ndarray) -> float:
    """The share of hits [N] of each class that occurs in labels [N], averaged."""
    seen, right = np.bincount(labels), np.bincount(labels, weights=hits)
    return float(np.mean(right[seen > 0] / seen[seen > 0]))


def with_interval(name: str, hits: np.ndarray) -> dict[str, float]:
    """The share of hits [N] as `name`, and its 95% interval."""
    low, high = wilson_interval(int(np.sum(hits)), len(hits))
    return {name: float(np.mean(hits)), f"{name}_low": low, f"{name}_high": high}


COUNTS = ("chance", "classes", "untrained_classes", "examples", "train_examples", "unlabelled", "unreadable")


def counts(data: ProbeData) -> dict[str, float]:
    """chance (1 / classes that were learned), and how many classes and records took part (COUNTS)."""
    trained = len(np.unique(data.train.labels))
    parts = [data.train, data.test, *([data.validation] if data.validation else [])]
    return {
        "chance": 1.0 / trained,
        "classes": data.classes,
        "untrained_classes": data.classes - trained,
        "examples": len(data.test.labels),
        "train_examples": len(data.train.labels),
        "unlabelled": sum(features.unlabelled for features in parts),
        "unreadable": sum(features.unreadable for features in parts),
    }


def per_class(data: ProbeData, hits: np.ndarray) -> list[dict[str, Any]]:
    """A row for each class that occurs among the scored examples: its name, top1, and numbers of examples."""
    seen = np.bincount(data.test.labels, minlength=data.classes)
    learned = np.bincount(data.train.labels, minlength=data.classes)
    right = np.bincount(data.test.labels, weights=hits, minlength=data.classes)
    return [
        {
            "class": str(data.names[c] if data.names else c),
            "top1": float(right[c] / seen[c]),
            "examples": int(seen[c]),
            "train_examples": int(learned[c]),
        }
        for c in np.flatnonzero(seen)
    ]


def search_peak(points: int, coarse: int, score: Callable[[int], float]) -> tuple[int, list[int]]:
    """(index of the best of `points`, the indices that were tried), by a binary search around the best so far.

    Every `coarse`-th point is tried first; then the best one's neighbours at half that distance, and so on to 1. Of
    equal scores the first counts. Source: 2103.00020, A.3.
    """
    found: dict[int, float] = {}
    known = functools.cache(score)

    def best(candidates: Sequence[int]) -> int:
        for index in candidates:
            found[index] = known(index)
        return max(candidates, key=lambda index: (found[index], -index))

    peak, span = best(range(0, points, coarse)), coarse // 2
    while span:
        peak = best([max(peak - span, 0), peak, min(peak + span, points - 1)])
        span //= 2
    return peak, sorted(found)
