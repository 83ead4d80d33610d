"""95% intervals of the numbers that evaluators report: the uncertainty from which examples were drawn.

They say nothing of the spread over training seeds. All are deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 1000
DRAWS_AT_A_TIME = 2**24  # bounds the memory of a bootstrap


def wilson_interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of the share hits / total (Wilson 1927), which also holds near 0 and 1; (0, 1) for a total of 0."""
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[[np.ndarray], Any] = np.mean, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95% percentile interval of statistic(values) over resampled rows (Efron 1979): (low, high).

    values: [n, ...], a row for each example. statistic: rows -> a number; resamples where it is NaN are left out. NaN,
    NaN where there are no rows, or it is NaN on all resamples.
    """
    values = np.asarray(values)
    if len(values) == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    return _percentiles(
        [float(statistic(values[rng.integers(len(values), size=len(values))])) for _ in range(resamples)]
    )


def mean_interval(values: np.ndarray, z: float = 1.96) -> tuple[float, float]:
    """95% interval of the mean of many numbers, normal approximation; the mean itself for a single one."""
    mean = float(np.mean(values))
    half = z * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half


def median_interval(values: np.ndarray, z: float = 1.96) -> tuple[float, float]:
    """95% interval of the median between two order statistics, whose number below it is binomial."""
    ordered, n = np.sort(values), len(values)
    half = z * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return float(ordered[low]), float(ordered[high])


def recall_interval(hits: np.ndarray, seen: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean over classes of hits / seen, bootstrapped over examples.

    hits, seen: [C] int, right answers and examples of each class. A resample draws as many examples as there are from
    all of them, as bootstrap_interval does; classes that it misses are left out of its mean.
    """
    occurs = seen > 0
    cells = np.stack([hits[occurs], (seen - hits)[occurs]])
    total, shape = int(cells.sum()), cells.shape
    if total == 0:
        return math.nan, math.nan
    rng, share = np.random.default_rng(seed), cells.ravel() / total
    at_a_time = max(1, DRAWS_AT_A_TIME // cells.size)
    found: list[float] = []
    for start in range(0, RESAMPLES, at_a_time):
        drawn = rng.multinomial(total, share, size=min(at_a_time, RESAMPLES - start)).reshape(-1, *shape)
        examples = drawn.sum(1)
        recalls = drawn[:, 0] / np.maximum(examples, 1)
        found += (recalls.sum(1) / np.count_nonzero(examples, axis=1)).tolist()
    return _percentiles(found)


def _percentiles(found: list[float]) -> tuple[float, float]:
    numbers = np.asarray(found)[~np.isnan(found)]
    if len(numbers) == 0:
        return math.nan, math.nan
    low, high = np.percentile(numbers, [2.5, 97.5])
    return float(low), float(high)


def mean_of_shares_interval(hits: np.ndarray, totals: np.ndarray, z: float = 1.96) -> tuple[float, float]:
    """95% interval of the unweighted mean of the shares hits / totals of several groups.

    Combines the groups' Wilson intervals (MOVER: Newcombe 1998; Zou and Donner 2008): the squares of their lower halves
    add up to that of the mean's, and so do the upper ones. Of one group it is Wilson's; it has a width even where every
    group is all right or all wrong. The groups themselves count as given, not as drawn.

    hits, totals: [G] int, right answers and examples of each group, at least one.
    """
    shares = np.asarray(hits) / np.asarray(totals)
    bounds = np.array([wilson_interval(int(hit), int(total), z) for hit, total in zip(hits, totals, strict=True)])
    half = np.sqrt(np.sum((bounds - shares[:, None]) ** 2, axis=0)) / len(shares)
    mean = float(np.mean(shares))
    return max(0.0, mean - float(half[0])), min(1.0, mean + float(half[1]))
