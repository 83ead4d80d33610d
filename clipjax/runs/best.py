"""Which checkpoints are the best by config.checkpoint.best_metric: those to keep, and the one that "best" names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from clipjax.config import CheckpointConfig, smaller_is_better


def options_of_best(config: CheckpointConfig) -> dict[str, Any]:
    """Orbax's options for keeping the last checkpoints, and the best ones by config.best_metric."""
    policies = [LatestN(config.keep_last)]
    best, smaller = config.best_metric, smaller_is_better(config.best_metric)

    def score(metrics: Mapping[str, float]) -> float:
        # A run that was continued with another best_metric has checkpoints without a value of it.
        return _ordered(metrics.get(best, math.nan), smaller)

    if best and config.keep_best:
        # "reverse" keeps the smallest.
        policies.append(
            BestN(get_metric_fn=score, reverse=smaller, n=config.keep_best, keep_checkpoints_without_metrics=False)
        )
    return {
        "preservation_policy": AnyPreservationPolicy(policies),
        "best_fn": score if best else None,
        "best_mode": "min" if smaller else "max",
    }


def best_of(scores: Mapping[int, float | None], metric: str) -> int | None:
    """The step with the best value of a metric, the earliest of equals; None where no step has a value.

    scores: step -> value, None where the step was not evaluated. A value that is not a number is the worst.
    """
    smaller = smaller_is_better(metric)
    known = {step: _ordered(score, smaller) for step, score in sorted(scores.items()) if score is not None}
    return (min if smaller else max)(known, key=known.get, default=None)


def _ordered(value: float, smaller: bool) -> float:
    """value, or the worst there is for NaN, which is neither smaller nor larger."""
    return (math.inf if smaller else -math.inf) if math.isnan(value) else value
