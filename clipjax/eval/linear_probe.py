"""Linear probe by logistic regression: L-BFGS on frozen features, the penalty chosen on a validation split.

The protocol of CLIP's paper (2103.00020, A.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import SourceConfig, require
from clipjax.config.fields import part, runtime
from clipjax.config.ranges import COUNT, SCALE_OR_ZERO, STEPS, Range
from clipjax.eval import features, scores
from clipjax.eval.features import Features, ProbeConfig
from clipjax.eval.logistic import Classifier, LogisticRegression

# 10^-6 to 10^6 in 96 steps, eight a decade; every 16th is tried first.
PENALTIES, COARSE = np.logspace(-6, 6, 97), 16
HELD_OUT = Range(0, 1, low_open=True, high_open=True)


@dataclass(frozen=True)
class LinearProbeConfig(ProbeConfig):
    """The options of the linear probe by logistic regression."""

    name: str = "linear_probe"
    validation: SourceConfig = part("clipjax.data.sources:SOURCES", "array_record")  # path "": a share of train
    validation_share: float = runtime(0.2, within=HELD_OUT)  # of each class of train, without a validation split
    C: float = runtime(0.0, within=SCALE_OR_ZERO)  # inverse of the L2 penalty, as in scikit-learn; 0: searched
    max_iterations: int = runtime(1000, within=COUNT)  # of L-BFGS
    seed: int = runtime(0, within=STEPS)  # of the share that is held out

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        shares = ("top1", "top1_low", "top1_high", "top5", "mean_per_class_recall", *scores.COUNTS)
        chosen = () if self.C else ("validation_top1", "validation_examples")
        return (*shares, "C", *chosen, "iterations", "converged")


def evaluate(config: LinearProbeConfig, *, mesh: Mesh, **given: Any) -> dict[str, Any]:
    """Accuracy of the classifier learned on `train` and the validation split. All processes call it together.

    The penalty is the best on the validation split (or on a share of train) among PENALTIES, by scores.search_peak;
    of equal ones the strongest. The classifier that is scored is fitted to both splits with it.

    given: the arguments of features.probe_data.
    Returns top1 with its 95% interval, top5, mean_per_class_recall, scores.COUNTS, C, validation_top1 and
    validation_examples (of the search), iterations, converged (1: within max_iterations). Raises ConfigError as
    features.probe_data does.
    """
    data = features.probe_data(config, **given)
    found, details, c, learn = {}, {"features": config.features}, config.C, data.train
    if not c:
        learn, held_out, origin = split_off(data.train, data.validation, config.validation_share, config.seed)
        c, accuracy, tried = choose_penalty(learn, held_out, data.classes, mesh, config.max_iterations)
        found = {"validation_top1": accuracy, "validation_examples": len(held_out.labels)}
        details |= {"validation": origin, "tried": tried}
    if data.validation is not None:
        learn = joined(data.train, data.validation)
    elif not config.C:
        learn = data.train
    classifier = LogisticRegression(learn.x, learn.labels, data.classes, mesh).fit(c, config.max_iterations)
    if not classifier.converged:
        logging.warning("The linear probe stopped after %d iterations, before it converged.", classifier.iterations)
    ranks = ranks_of(classifier, data.test, mesh)
    return {
        **scores.with_interval("top1", ranks == 0),
        "top5": float(np.mean(ranks < 5)),
        "mean_per_class_recall": scores.mean_per_class_recall(ranks == 0, data.test.labels),
        **scores.counts(data),
        "C": float(c),
        **found,
        "iterations": classifier.iterations,
        "converged": int(classifier.converged),
        "details": {**details, "classes": scores.per_class(data, ranks == 0)},
    }


def split_off(train: Features, validation: Features | None, share: float, seed: int) -> tuple[Features, Features, str]:
    """(the examples to learn from, those to choose by, where the latter come from, for the results)."""
    if validation is not None:
        return train, validation, "its own split"
    chosen = features.stratified_share(train.labels, share, seed)
    require(
        bool(chosen.any()),
        f"No class has enough of the {len(train.labels)} training records to hold out a share of {share:g} that "
        "chooses the penalty. Give a validation split, a larger validation_share, or the penalty itself.",
    )
    held_out = train._replace(x=train.x[chosen], labels=train.labels[chosen])
    origin = f"{len(held_out.labels)} records of train, {share:g} of each class, seed {seed}"
    return train._replace(x=train.x[~chosen], labels=train.labels[~chosen]), held_out, origin


def choose_penalty(
    train: Features, held_out: Features, classes: int, mesh: Mesh, max_iterations: int
) -> tuple[float, float, dict[str, float]]:
    """(the best C, its share of hits among the held-out examples, that of every C that was tried)."""
    problem, shares = LogisticRegression(train.x, train.labels, classes, mesh), {}

    def share(index: int) -> float:
        classifier = problem.fit(float(PENALTIES[index]), max_iterations)
        shares[index] = float(np.mean(ranks_of(classifier, held_out, mesh) == 0))
        return shares[index]

    peak, tried = scores.search_peak(len(PENALTIES), COARSE, share)
    return float(PENALTIES[peak]), shares[peak], {f"{PENALTIES[index]:.4g}": shares[index] for index in tried}


def joined(one: Features, other: Features) -> Features:
    """The examples of both."""
    return one._replace(
        x=np.concatenate([one.x, other.x]),
        labels=np.concatenate([one.labels, other.labels]),
    )


def ranks_of(classifier: Classifier, test: Features, mesh: Mesh) -> np.ndarray:
    """[N]: see scores.linear_ranks."""
    return scores.linear_ranks(test.x, classifier.kernel, classifier.bias, test.labels, mesh)
