"""Multilabel classification: mean average precision of images ranked for each class by their prompts' embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import ConfigError, require
from clipjax.eval.class_names import ClassesConfig, names_of, resolve_names
from clipjax.eval.class_prompts import class_prompts, embed_classes
from clipjax.eval.embeddings import Where, broken_rows, not_finite_error, record_name
from clipjax.eval.intervals import bootstrap_interval
from clipjax.mesh import replicated, to_host, to_mesh

RESAMPLED = 2**30  # scores that the bootstrap may look at in all; very large sets get fewer resamples
FEWEST, MOST = 100, 1000  # resamples


@dataclass(frozen=True)
class MultilabelConfig(ClassesConfig):
    """The options of multilabel classification."""

    name: str = "multilabel"
    published_task: ClassVar[str] = "zeroshot_classification"
    published_names: ClassVar[Mapping[str, str]] = {"mean_average_precision": "mean_average_precision"}

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        shown = [f"mean_average_precision{bound}" for bound in ("", "_low", "_high")]
        counts = ("classes", "without_positives", "examples", "positives", "unreadable", "indistinguishable")
        return (*shown, "chance", *counts)


def evaluate(
    config: MultilabelConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str],
    record: Callable[[int], dict[str, Any]],
    mesh: Mesh,
    where: Where | None = None,
    templates: Sequence[str] = (),
    **_: object,
) -> dict[str, Any]:
    """Mean average precision over classes. All processes call it together.

    Arguments as those of clipjax.eval.zero_shot.evaluate. record: (index) -> the source's record, whose "targets" are
    [C] of 0 and 1, a column for each of the source's class names.
    Returns mean_average_precision and its 95% interval (_low, _high; a bootstrap over images), chance (the mean share
      of images that show a class), classes, without_positives (classes that no image shows: their average precision
      counts as 0), examples, positives (ones in the targets), unreadable (bad records), indistinguishable, and details:
      "per_class" with {"class", "positives", "average_precision"}, the prompts, the tie rule.
    Raises ConfigError for missing class names or targets, targets of another length or with other values, and data
      without a positive; EmbeddingError for an embedding that is not finite.
    """
    names, lines = resolve_names(config, class_names)
    prompts = class_prompts(config, names, templates)
    classes, indistinguishable = embed_classes(names, prompts, tokenizer, embed_texts, config.not_finite)
    own = [names[line] for line in lines]
    scores, targets, unreadable = _scores(config, batches, embed_images, classes[lines], record, mesh, where)
    data = f"{config.source.path}, split '{config.source.split}'"
    require(len(scores) > 0, f"{data}: no record could be read.")
    require(bool(targets.any()), f"{data}: no image shows any class; every row of targets is 0.")
    precision = average_precision(scores, targets, config.ties)
    positives = targets.sum(axis=0)
    if empty := [name for name, count in zip(own, positives, strict=True) if not count]:
        logging.warning(
            "%s: no image shows %d of %d classes, whose average precision counts as 0: %s",
            data, len(empty), len(own), ", ".join(f"'{name}'" for name in empty[:10]),
        )  # fmt: skip
    low, high = _interval(scores, targets, config.ties)
    table = [
        {"class": name, "positives": int(count), "average_precision": float(value)}
        for name, count, value in zip(own, positives, precision, strict=True)
    ]
    return {
        "mean_average_precision": float(precision.mean()),
        "mean_average_precision_low": low,
        "mean_average_precision_high": high,
        "chance": float(targets.mean()),
        "classes": len(own),
        "without_positives": len(empty),
        "examples": len(scores),
        "positives": int(positives.sum()),
        "unreadable": unreadable,
        "indistinguishable": indistinguishable,
        "details": {
            "prompts": prompts.document(),
            "ties": config.ties,
            "not_finite": config.not_finite,
            "per_class": table,
        },
    }


def _scores(
    config: MultilabelConfig,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    classes: np.ndarray,
    record: Callable[[int], dict[str, Any]],
    mesh: Mesh,
    where: Where | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """(scores [N, C] float32, targets [N, C] bool, the number of bad records). Raises as evaluate does."""
    on_mesh = to_mesh(classes, replicated(mesh))
    score = jax.jit(lambda embedding, classes: jnp.matmul(embedding, classes.T, precision="highest"))
    scores, targets = [np.zeros((0, len(classes)), np.float32)], [np.zeros((0, len(classes)), bool)]
    unreadable = 0
    for batch in batches():
        embedding = embed_images(batch)
        found, embedded, valid, index = to_host((score(embedding, on_mesh), embedding, batch["valid"], batch["index"]))
        unreadable += int(np.sum(~valid & (index >= 0)))
        places = [f"{config.source.path}, {record_name(int(i), where)}" for i in index[valid]]
        if len(broken := broken_rows(embedded[valid], config.not_finite)):
            raise not_finite_error(f"the image of {places[broken[0]]}", broken, len(places))
        rows = [
            targets_of(record(int(i)), len(classes), place, names_of(config))
            for i, place in zip(index[valid], places, strict=True)
        ]
        scores.append(found[valid])
        targets.append(np.stack(rows) if rows else targets[0])
    return np.concatenate(scores), np.concatenate(targets), unreadable


def targets_of(record: dict[str, Any], num_classes: int, place: str, names: str) -> np.ndarray:
    """[C] bool of a record. place, names: the record and the class names as messages call them. Raises ConfigError."""
    if record.get("targets") is None:
        raise ConfigError(
            f"{place}: the record has no targets, a row of 0 and 1 for the classes. Multilabel evaluation reads them "
            "from .npy files in tars of CLIP_benchmark's layout; for one class an image use zero_shot."
        )
    row = np.asarray(record["targets"]).reshape(-1)
    require(
        len(row) == num_classes,
        f"{place}: the record has {len(row)} targets, but there are {num_classes} class names in {names}.",
    )
    require(
        bool(np.isin(row, (0, 1)).all()),
        f"{place}: targets must be 0 or 1, but one is {row[~np.isin(row, (0, 1))][:1].tolist()[:1]}.",
    )
    return row.astype(bool)


def average_precision(scores: np.ndarray, targets: np.ndarray, ties: str = "against") -> np.ndarray:
    """[C] float64: the average precision of each class, the mean over its positives of the precision at their ranks.

    scores: [N, C] float, targets: [N, C] bool. Equal to scikit-learn's average_precision_score without equal scores.
    ties: "against": of equal scores the negatives come first; "first": the image with the lowest index. A negative
    whose score is NaN comes first, and a positive last. 0 for a class without positives.
    """
    order = _order(scores, targets, ties)
    truth = np.take_along_axis(targets, order, axis=0)
    precision = np.cumsum(truth, axis=0) / np.arange(1, len(truth) + 1)[:, None]
    return (precision * truth).sum(axis=0) / np.maximum(truth.sum(axis=0), 1)


def _order(scores: np.ndarray, targets: np.ndarray, ties: str) -> np.ndarray:
    """[N, C]: the images from the best to the worst for each class."""
    worst_case = np.where(np.isnan(scores), np.where(targets, -np.inf, np.inf), scores)
    if ties == "first":
        return np.argsort(-worst_case, axis=0, kind="stable")
    return np.stack([np.lexsort((targets[:, c], -worst_case[:, c])) for c in range(scores.shape[1])], axis=1)


def _interval(scores: np.ndarray, targets: np.ndarray, ties: str) -> tuple[float, float]:
    """95% interval of the mean over classes, bootstrapped over images.

    A class that a resample has no positives of is left out of its mean, unless it never has any.
    """
    order = _order(scores, targets, ties)
    truth = np.take_along_axis(targets, order, axis=0)
    never = int(np.sum(~targets.any(axis=0)))

    def mean(images: np.ndarray) -> float:
        # The copies of an image are equal, so that they share the precision after the last of them.
        times = np.bincount(images, minlength=len(scores)).astype(np.float32)[order]
        positive = times * truth
        seen, right = np.cumsum(times, axis=0), np.cumsum(positive, axis=0)
        total = right[-1]
        found = (positive * right / np.maximum(seen, 1)).sum(axis=0)[total > 0] / total[total > 0]
        return float(found.sum() / (len(found) + never)) if len(found) else float("nan")

    resamples = int(np.clip(RESAMPLED // scores.size, FEWEST, MOST))
    return bootstrap_interval(np.arange(len(scores)), mean, resamples=resamples)
