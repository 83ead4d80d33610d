"""Few-shot classification by least squares on frozen features, the protocol of big_vision's fewshot_lsr."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clipjax.config import require
from clipjax.config.fields import runtime
from clipjax.config.ranges import COUNT, Range
from clipjax.eval import features, scores
from clipjax.eval.features import Features, LabelsOf, ProbeConfig
from clipjax.eval.intervals import wilson_interval

BIAS, EPSILON = 100.0, 1e-5
PENALTY = Range(0, 1e12, low_open=True)


@dataclass(frozen=True)
class FewShotConfig(ProbeConfig):
    """The options of few-shot classification."""

    name: str = "few_shot"
    shots: tuple[int, ...] = runtime((1, 5, 10, 25), within=COUNT)  # training examples of each class
    seeds: int = runtime(3, within=COUNT)  # draws of training examples, which are averaged
    l2: float = runtime(2.0**10, within=PENALTY)  # penalty of the squared weights
    dtype: Literal["float32", "float64"] = runtime("float32")  # of the least squares; big_vision's is float32

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        shares = [f"top1_{{}}shot{end}" for end in ("", "_low", "_high", "_std")]
        kinds = (*shares, "mean_per_class_recall_{}shot", "short_classes_{}shot")
        return (*(kind.format(n) for n in self.shots for kind in kinds), *scores.COUNTS)


def check(
    config: FewShotConfig,
    *,
    class_names: Sequence[str] | None = None,
    labels: LabelsOf | None = None,
    others: Mapping[str, tuple[Sequence[str], LabelsOf]] | None = None,
) -> None:
    """Refuses repeated shots, and what features.check_probe refuses. Raises ConfigError."""
    require(
        len(config.shots) > 0 and len(set(config.shots)) == len(config.shots),
        f"shots={config.shots} must be one or more different numbers.",
    )
    features.check_probe(config, class_names=class_names, labels=labels, others=others)


def evaluate(config: FewShotConfig, **given: Any) -> dict[str, Any]:
    """Accuracy after learning from a few examples of each class, for each number of shots. All processes call it.

    A class with fewer examples than shots gives all it has; such classes are counted (short_classes_Nshot) and logged.

    given: the arguments of features.probe_data.
    Returns for each number N of shots top1_Nshot (the mean over the draws) with the 95% interval that comes from the
    number of scored images, top1_Nshot_std (over the draws), mean_per_class_recall_Nshot, short_classes_Nshot, and
    scores.COUNTS. Raises ConfigError as features.probe_data does.
    """
    data = features.probe_data(config, **given)
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
            hits = least_squares_hits(x[chosen], labels[chosen], data.test, data.classes, config.l2, config.dtype)
            accuracies.append(float(np.mean(hits)))
            balanced.append(scores.mean_per_class_recall(hits, data.test.labels))
        name, examples = f"top1_{shots}shot", len(data.test.labels)
        low, high = wilson_interval(float(np.mean(accuracies)) * examples, examples)
        spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        results |= {name: float(np.mean(accuracies)), f"{name}_low": low, f"{name}_high": high, f"{name}_std": spread}
        results |= {f"mean_per_class_recall_{shots}shot": float(np.mean(balanced)), f"short_classes_{shots}shot": short}
        draws[name] = accuracies
    return {**results, **scores.counts(data), "details": {"features": config.features, "draws": draws}}


def draw(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` examples of each class, of all where it has fewer.

    The first of a permutation that NumPy's default generator makes for one class after the other: big_vision's draw,
    where the records have the same order.
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == own))[:shots] for own in range(classes)])


def least_squares_hits(
    x: np.ndarray, labels: np.ndarray, test: Features, classes: int, l2: float, dtype: str = "float32"
) -> np.ndarray:
    """[M] bool: the test examples whose class the ridge regression to 1 for it and -1 for the others scores highest.

    minimise  |Z W - T|^2 + l2 |W|^2,  Z = [(x - mean) / (std + 1e-5), 100]

    The constant is a bias that is hardly penalised. x: [N, D], labels: [N]. It is solved on the processor, in dtype,
    with the eigenvalues of Z^T Z or Z Z^T, whichever is smaller, as big_vision does: its float32 decides which of two
    nearly equal classes is first. Raises ConfigError where the solution is not finite.
    """
    with jax.enable_x64(dtype == "float64"), jax.default_device(_processor()):
        weights, mean, std = _least_squares(jnp.asarray(x, dtype), labels.astype(np.int32), classes, l2)
        require(
            bool(jnp.isfinite(weights).all()),
            f"few_shot: the least squares of {len(x)} examples with l2={l2:g} have no finite solution in {dtype}.",
        )
        return np.asarray(_predict(weights, mean, std, jnp.asarray(test.x, dtype))) == test.labels


@functools.partial(jax.jit, static_argnums=2)
def _least_squares(x: jax.Array, labels: jax.Array, classes: int, l2: float) -> tuple[jax.Array, ...]:
    """(weights [D + 1, C], mean [1, D], std [1, D])."""
    mean, std = jnp.mean(x, axis=0, keepdims=True), jnp.std(x, axis=0, keepdims=True) + EPSILON
    z = _with_bias((x - mean) / std)
    targets = 2.0 * jax.nn.one_hot(labels, classes, dtype=x.dtype) - 1.0
    if z.shape[0] >= z.shape[1]:
        eigenvalues, vectors = jnp.linalg.eigh(z.T @ z)
        left, right = vectors, vectors.T @ (z.T @ targets)
    else:
        eigenvalues, vectors = jnp.linalg.eigh(z @ z.T)
        left, right = z.T @ vectors, vectors.T @ targets
    return (left * (1.0 / (eigenvalues + l2))[None]) @ right, mean, std


@jax.jit
def _predict(weights: jax.Array, mean: jax.Array, std: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.argmax(_with_bias((x - mean) / std) @ weights, axis=1)


def _with_bias(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)


def _processor() -> jax.Device:
    """The host's processor, or an accelerator where JAX was started without it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
