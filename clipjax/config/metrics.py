"""What a metric's name says: which way it improves, and whether its values are shares or counts.

Whoever compares or shows values of a metric asks here.
"""

from __future__ import annotations

from typing import Any

# The last words of names, after the evaluator's.
_SMALLER = (
    "rank", "loss", "error", "ece", "gap", "alignment", "uniformity", "perplexity", "nll", "brier", "distance",
    "seconds", "seconds_per_step", "data_wait", "skipped", "bytes",
    "non_matching_cosine", "modality_accuracy", "dead_dimensions",
)  # fmt: skip
_LARGER = ("effective_rank",)  # of the embeddings' covariance
# What evaluators count. In logs, where every number is a float, a count of 0 or 1 looks like a share.
_COUNTS = (
    "captions", "classes", "converged", "distinct_pairs", "examples", "groups", "indistinguishable", "iterations",
    "left_out", "positives", "repeated_captions", "train_examples", "unlabelled", "unreadable", "untrained_classes",
    "validation_examples", "without_positives",
)  # fmt: skip
_COUNTS_OF_SHOTS = "short_classes_"  # short_classes_5shot
# The last words of metrics whose values may lie between 0 and 1 without being shares.
_NO_SHARES = ("rank", "alignment", "uniformity", "cosine", "gap", "weight_decay", "C")


def smaller_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one: ranks, losses, errors, gaps and times.

    metric: "evaluator/metric" or the metric alone; its last words decide, so that "x/i2t_median_rank" is a rank.
    """
    words = "_" + metric.rpartition("/")[2].lower()
    return words.endswith(tuple("_" + name for name in _SMALLER)) and not words.endswith(
        tuple("_" + name for name in _LARGER)
    )


def is_count(metric: str) -> bool:
    """Whether an evaluator's metric is a whole number of something, or 0 or 1 for no or yes.

    metric: "evaluator/metric" or the metric alone.
    """
    name = metric.rpartition("/")[2]
    return name in _COUNTS or name.startswith(_COUNTS_OF_SHOTS)


def is_share(metric: str, value: Any) -> bool:
    """Whether a value is a share between 0 and 1. A count, a rank or a distance may be, but is not a share."""
    inside = isinstance(value, float) and 0 <= value <= 1
    return inside and not is_count(metric) and not metric.endswith(_NO_SHARES)
