"""Whether the spread over seeds explains a difference: means, t-tests, and Holm's correction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats

LEVEL = 0.05  # of the corrected p-value, and of intervals of 95 %

Test = Literal["paired", "welch", ""]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Values over seeds."""

    mean: float  # NaN without values
    deviation: float  # the standard deviation, with n - 1 in the denominator; NaN below two values
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting's mean minus the baseline's, with the test of whether the seeds' spread explains it."""

    mean: float
    low: float  # the 95 % interval, not corrected for the number of comparisons; NaN without a test
    high: float
    p: float  # two-sided; NaN without a test
    corrected: float  # p by Holm's correction over all comparisons; NaN without a test
    test: Test  # "paired": t-test of the differences over shared seeds; "welch": seeds differ; "": no test
    count: int  # seeds of the paired test, or of the smaller side of Welch's
    why_not: str  # why there is no test, and of which seeds the difference is where not of all; "" with a test

    @property
    def significant(self) -> bool:
        """Whether the spread over seeds does not explain the difference."""
        return self.corrected < LEVEL


def spread(values: Sequence[float]) -> Spread:
    """The mean and standard deviation of values over seeds."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean()) if values.size else math.nan
    return Spread(mean, float(values.std(ddof=1)) if values.size > 1 else math.nan, values.size)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """values minus baseline, both {seed: value}; `corrected` is p until `holm` corrects it.

    With two seeds or more in common, the paired t-test over these, whose mean difference it then gives. Otherwise
    Welch's t-test, where both have two values or more.
    """
    shared = sorted(values.keys() & baseline.keys())
    if len(shared) >= 2:
        pairs = np.array([values[seed] - baseline[seed] for seed in shared], np.float64)
        error = pairs.std(ddof=1) / math.sqrt(len(pairs))
        return _tested(float(pairs.mean()), float(error), len(pairs) - 1, "paired", len(shared))
    first, second = (np.array(list(side.values()), np.float64) for side in (values, baseline))
    if min(first.size, second.size) >= 2:
        parts = np.array([side.var(ddof=1) / side.size for side in (first, second)])
        error, weights = math.sqrt(parts.sum()), parts**2 / (np.array([first.size, second.size]) - 1)
        freedom = float(parts.sum() ** 2 / weights.sum()) if error else 1.0
        return _tested(float(first.mean() - second.mean()), error, freedom, "welch", min(first.size, second.size))
    if not values or not baseline:
        return _untested(math.nan, 0, "one side has no value")
    if shared:
        why = "one seed tells nothing about the spread"
        if len(values) + len(baseline) > 2:
            why = (
                f"one shared seed tells nothing about the spread; the difference is that of seed {shared[0]}, the only "
                f"one that both have, but the means are over all seeds ({len(values)} here, {len(baseline)} in the "
                "baseline)"
            )
        return _untested(values[shared[0]] - baseline[shared[0]], 1, why)
    return _untested(
        float(first.mean() - second.mean()), 1, "one side has a single seed, which tells nothing of the spread"
    )


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The differences with `corrected` set, by Holm's step-down method over all that have a test.

    S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    tested = sorted((i for i, d in enumerate(differences) if d is not None and d.test), key=lambda i: differences[i].p)
    result, largest = list(differences), 0.0
    for rank, place in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * differences[place].p))
        result[place] = dataclasses.replace(differences[place], corrected=largest)
    return result


def _tested(mean: float, error: float, freedom: float, test: Test, count: int) -> Difference:
    # Equal differences leave rounding behind, which is no spread.
    if error <= 1e-12 * abs(mean):
        same = "all values are equal" if mean == 0 else "the seeds do not spread at all, so there is nothing to test by"
        return _untested(mean, count, same)
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    return Difference(mean, mean - half, mean + half, p, p, test, count, "")


def _untested(mean: float, count: int, why_not: str) -> Difference:
    return Difference(mean, math.nan, math.nan, math.nan, math.nan, "", count, why_not)
