"""Few-shot classification by least squares on frozen features, the protocol of big_vision's fewshot_lsr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import ConfigError, require
from clipjax.config.fields import runtime
from clipjax.config.ranges import COUNT, Range
from clipjax.eval import features, scores
from clipjax.eval.features import Embed, ProbeConfig
from clipjax.eval.split import Split
from clipjax.eval.zero_shot import wilson_interval

BIAS, EPSILON = 100.0, 1e-5
PENALTY = Range(0, 1e12, low_open=True)


@dataclass(frozen=True)
class FewShotConfig(ProbeConfig):
    """The options of few-shot classification."""

    name: str = "few_shot"
    shots: tuple[int, ...] = runtime((1, 5, 10, 25), within=COUNT)  # training examples of each class
    seeds: int = runtime(3, within=COUNT)  # draws of training examples, which are averaged
    l2: float = runtime(2.0**10, within=PENALTY)  # penalty of the squared weights

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        kinds = ("top1_{}shot", "top1_{}shot_low", "top1_{}shot_high", "top1_{}shot_std", "mean_per_class_{}shot")
        return (*(kind.format(n) for n in self.shots for kind in (*kinds, "short_classes_{}shot")), *scores.COUNTS)


def check(config: FewShotConfig, **data: Any) -> None:
    """Refuses repeated shots, and what features.check_probe refuses. Raises ConfigError."""
    require(
        len(config.shots) > 0 and len(set(config.shots)) == len(config.shots),
        f"shots={config.shots} must be one or more different numbers.",
    )
    features.check_probe(config, **data)


def evaluate(
    config: FewShotConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Embed,
    class_names: Sequence[str],
    train: Split,
    mesh: Mesh,
    image_features: Embed | None = None,
    where: Callable[[int], tuple[str, int]] | None = None,
    **_: object,
) -> dict[str, Any]:
    """Accuracy after learning from a few examples of each class, for each number of shots. All processes call it.

    A class with fewer examples than shots gives all it has; such classes are counted (short_classes_Nshot) and logged.

    Returns for each number N of shots top1_Nshot (the mean over the draws) with the 95% interval that comes from the
    number of scored images, top1_Nshot_std (over the draws), mean_per_class_Nshot, short_classes_Nshot, and
    scores.COUNTS. Raises ConfigError as features.probe_data does.
    """
    data = features.probe_data(
        config,
        batches=batches,
        embed_images=embed_images,
        image_features=image_features,
        class_names=class_names,
        where=where,
        train=train,
    )
    available = np.bincount(data.train.labels, minlength=data.classes)
    x, labels = data.train.x, data.train.labels
    results: dict[str, Any] = {}
    draws: dict[str, list[float]] = {}
    for shots in config.shots:
        short = int(np.sum(available < shots))
        if short:
            logging.warning("%d of %d classes have fewer than %d training examples.", short, data.classes, shots)
        accuracies, balanced = [], []
        for seed in range(config.seeds):
            chosen = draw(labels, data.classes, shots, seed)
            kernel, bias = least_squares(x[chosen], labels[chosen], data.classes, config.l2)
            hits = scores.linear_ranks(data.test.x, kernel, bias, data.test.labels, mesh) == 0
            accuracies.append(float(np.mean(hits)))
            balanced.append(scores.mean_per_class(hits, data.test.labels))
        name, examples = f"top1_{shots}shot", len(data.test.labels)
        low, high = wilson_interval(np.mean(accuracies) * examples, examples)
        spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        results |= {name: float(np.mean(accuracies)), f"{name}_low": low, f"{name}_high": high, f"{name}_std": spread}
        results |= {f"mean_per_class_{shots}shot": float(np.mean(balanced)), f"short_classes_{shots}shot": short}
        draws[name] = accuracies
    return {**results, **scores.counts(data), "details": {"features": config.features, "draws": draws}}


def draw(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` examples of each class, of all where it has fewer.

    The first of a permutation that NumPy's default generator makes for one class after the other: big_vision's draw,
    where the records have the same order.
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == own))[:shots] for own in range(classes)])


def least_squares(x: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """(kernel [D, C], bias [C]) float64 of the ridge regression to 1 for an example's class and -1 for the others.

    minimise  |Z W - T|^2 + l2 |W|^2,  Z = [(x - mean) / (std + 1e-5), 100]

    The constant is a bias that is hardly penalised. x: [N, D], labels: [N]. The system that is solved has the smaller
    of N and D + 1 unknowns for each class. Raises ConfigError where it has no solution.
    """
    x = x.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0) + EPSILON
    z = np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)
    targets = 2.0 * (labels[:, None] == np.arange(classes)) - 1.0
    try:
        if len(z) >= z.shape[1]:
            weights = np.linalg.solve(z.T @ z + l2 * np.eye(z.shape[1]), z.T @ targets)
        else:
            weights = z.T @ np.linalg.solve(z @ z.T + l2 * np.eye(len(z)), targets)
    except np.linalg.LinAlgError as error:
        raise ConfigError(f"The least squares of {len(x)} examples have no solution with l2={l2}: {error}") from error
    kernel = weights[:-1] / std[:, None]
    return kernel, BIAS * weights[-1] - mean @ kernel
