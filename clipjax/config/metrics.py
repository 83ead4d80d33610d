"""Which way a metric improves. Whoever compares values of a metric asks here."""

from __future__ import annotations

# The last words of names, after the evaluator's.
_SMALLER = (
    "rank", "loss", "error", "ece", "gap", "alignment", "uniformity", "perplexity", "nll", "brier", "distance",
    "seconds", "seconds_per_step", "data_wait", "skipped", "bytes",
    "non_matching_cosine", "modality_accuracy", "dead_dimensions",
)  # fmt: skip
_LARGER = ("effective_rank",)  # of the embeddings' covariance


def smaller_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one: ranks, losses, errors, gaps and times.

    metric: "evaluator/metric" or the metric alone; its last words decide, so that "x/i2t_median_rank" is a rank.
    """
    words = "_" + metric.rpartition("/")[2].lower()
    return words.endswith(tuple("_" + name for name in _SMALLER)) and not words.endswith(
        tuple("_" + name for name in _LARGER)
    )
