"""Numbers of a classification, from what was predicted for each example: recall, calibration, confusion.

NumPy on one number per example; clipjax.eval.zero_shot computes those on the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax.eval.intervals import recall_interval, wilson_interval

BINS = 15  # of the calibration error
TOP5_FROM = 5  # classes; among fewer, an answer among the five best says nothing
MATRIX_UP_TO = 200  # classes
CONFUSIONS = 50  # of the most frequent ones


class Predictions(NamedTuple):
    """One entry for each labelled example."""

    target: np.ndarray  # [N] int, the right class
    predicted: np.ndarray  # [N] int
    rank: np.ndarray  # [N] int, of the right class; 1 is best
    confidence: np.ndarray  # [N] float32, the probability of the predicted class


def shares(found: Predictions, num_classes: int) -> dict[str, float]:
    """top1, top5 (from 5 classes on) and mean_per_class_recall, each with its 95% interval.

    top-k: share of examples whose class is among the k best. mean_per_class_recall: the share of right answers of each
    class that occurs, averaged (scikit-learn's balanced accuracy). Intervals: Wilson's for shares; a bootstrap over
    examples for the mean.
    """
    numbers: dict[str, float] = {}
    for k in (1, 5) if num_classes >= TOP5_FROM else (1,):
        hits = int(np.sum(found.rank <= k))
        numbers[f"top{k}"] = hits / len(found.rank)
        numbers[f"top{k}_low"], numbers[f"top{k}_high"] = wilson_interval(hits, len(found.rank))
    hits, seen = per_class(found, num_classes)
    numbers["mean_per_class_recall"] = float(np.mean(hits[seen > 0] / seen[seen > 0]))
    low, high = recall_interval(hits, seen)
    return numbers | {"mean_per_class_recall_low": low, "mean_per_class_recall_high": high}


def per_class(found: Predictions, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(right answers, examples) of each class, [C] int each."""
    right = found.target[found.rank == 1]
    return np.bincount(right, minlength=num_classes), np.bincount(found.target, minlength=num_classes)


def calibration(found: Predictions) -> tuple[float, list[dict[str, float]]]:
    """(the expected calibration error, its bins) by Guo et al. (1706.04599).

    Examples fall into 15 bins of equal width by their confidence; the error is the mean over examples of
    |accuracy - mean confidence| of the example's bin. A confidence that is not finite counts as 1, in the last bin.
    Bins: {"confidence", "accuracy", "examples"}, without the empty ones.
    """
    confidence = np.where(np.isfinite(found.confidence), found.confidence, 1.0).astype(np.float64)
    right = found.rank == 1
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bin n holds (n / 15, (n + 1) / 15]
    bins = []
    for n in range(BINS):
        inside = number == n
        if inside.any():
            mean = {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
            bins.append({**mean, "examples": int(inside.sum())})
    error = sum(one["examples"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / len(confidence)
    return error, bins


def tables(found: Predictions, names: Sequence[str]) -> dict[str, Any]:
    """JSON values: "per_class", "confusions" and, up to 200 classes, "confusion_matrix".

    per_class: {"class", "examples", "predicted" (how often), "recall" (where there are examples)} of every class.
    confusions: [right class, predicted class, count], the most frequent first. confusion_matrix: a row of counts for
    each right class, a column for each predicted one.
    """
    count = len(names)
    hits, seen = per_class(found, count)
    predicted = np.bincount(found.predicted, minlength=count)
    rows = [
        {"class": name, "examples": int(seen[c]), "predicted": int(predicted[c])}
        | ({"recall": float(hits[c] / seen[c])} if seen[c] else {})
        for c, name in enumerate(names)
    ]
    pairs, counts = np.unique(found.target.astype(np.int64) * count + found.predicted, return_counts=True)
    wrong = np.flatnonzero(pairs // count != pairs % count)
    order = wrong[np.argsort(-counts[wrong], kind="stable")][:CONFUSIONS]
    details: dict[str, Any] = {
        "per_class": rows,
        "confusions": [[names[pairs[i] // count], names[pairs[i] % count], int(counts[i])] for i in order],
    }
    if count <= MATRIX_UP_TO:
        matrix = np.zeros(count * count, np.int64)
        matrix[pairs] = counts
        details["confusion_matrix"] = matrix.reshape(count, count).tolist()
    return details
