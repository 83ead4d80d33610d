"""Linear probe by AdamW, the protocol of CLIP_benchmark: a linear layer on frozen features, a cosine schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from clipjax.config import SourceConfig
from clipjax.config.fields import part, runtime
from clipjax.config.ranges import COUNT, EXAMPLES, LEARNING_RATE, RATE, SCALE_OR_ZERO, STEPS
from clipjax.eval import features, scores
from clipjax.eval.features import Features, ProbeConfig
from clipjax.eval.linear_probe import joined, split_off
from clipjax.mesh import batch_sharding, batch_shards, replicated, to_host, to_mesh

# 10^-6 to 10^2, twelve a decade; every 16th is tried first.
WEIGHT_DECAYS, COARSE = np.logspace(-6, 2, 97), 16


@dataclass(frozen=True)
class LinearProbeAdamWConfig(ProbeConfig):
    """The options of the linear probe by AdamW."""

    name: str = "linear_probe_adamw"
    published_task: ClassVar[str] = "linear_probe"
    # chooses the weight decay; path "": a share of train does, if there is one
    validation: SourceConfig = part("clipjax.data.sources:SOURCES", "array_record")
    validation_share: float = runtime(0.0, within=RATE)  # of each class of train; 0: weight_decay is not searched
    normalize: bool = runtime(True)  # features to unit length
    learning_rate: float = runtime(0.1, within=LEARNING_RATE)  # falls to 0 along a cosine, without warm-up
    weight_decay: float = runtime(0.0, within=SCALE_OR_ZERO)  # where it is not searched
    epochs: int = runtime(10, within=COUNT)
    batch_size: int = runtime(64, within=EXAMPLES)  # of the probe's own updates
    seed: int = runtime(0, within=STEPS)  # of the first weights, the order and the share that is held out

    @property
    def searches(self) -> bool:
        """Whether the weight decay is chosen on held-out examples."""
        return bool(self.validation.path) or self.validation_share > 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        shares = ("lp_acc1", "lp_acc1_low", "lp_acc1_high", "lp_acc5", "lp_mean_per_class_recall", *scores.COUNTS)
        return (*shares, "weight_decay", *(("validation_acc1", "validation_examples") if self.searches else ()))

    def published_metrics(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """CLIP_benchmark's names, which are ours, and the options that it writes beside them."""
        names = ("lp_acc1", "lp_acc5", "lp_mean_per_class_recall", "weight_decay")
        options = {"epochs": self.epochs, "seed": self.seed, "fewshot_k": -1, "normalized": self.normalize}
        return {name: result.get(name) for name in names} | options


def evaluate(config: LinearProbeAdamWConfig, *, mesh: Mesh, **given: Any) -> dict[str, Any]:
    """Accuracy of a linear layer trained on `train`. All processes call it together.

    With held-out examples the weight decay is searched among WEIGHT_DECAYS by scores.search_peak, and the layer that
    is scored learns from both.

    given: the arguments of features.probe_data.
    Returns lp_acc1 with its 95% interval, lp_acc5, lp_mean_per_class_recall, scores.COUNTS, weight_decay and, after a
    search, validation_acc1 and validation_examples. Raises ConfigError as features.probe_data does.
    """
    data = features.probe_data(config, **given)
    prepared = features.unit_rows if config.normalize else np.asarray
    train, test, validation = (
        split and split._replace(x=prepared(split.x)) for split in (data.train, data.test, data.validation)
    )
    decay, found, details, learn = config.weight_decay, {}, {"features": config.features}, train
    if config.searches:
        learn, held_out, origin = split_off(train, validation, config.validation_share, config.seed)
        decay, accuracy, tried = choose_decay(config, learn, held_out, data.classes, mesh)
        found = {"validation_acc1": accuracy, "validation_examples": len(held_out.labels)}
        details |= {"validation": origin, "tried": tried}
        learn = joined(learn, held_out)
    ranks = ranks_after(config, learn, test, data.classes, decay, mesh)
    return {
        **scores.with_interval("lp_acc1", ranks == 0),
        "lp_acc5": float(np.mean(ranks < 5)),
        "lp_mean_per_class_recall": scores.mean_per_class_recall(ranks == 0, data.test.labels),
        **scores.counts(data),
        "weight_decay": float(decay),
        **found,
        "details": {
            **details,
            "epochs": config.epochs,
            "seed": config.seed,
            "fewshot_k": -1,
            "normalized": config.normalize,
            "classes": scores.per_class(data, ranks == 0),
        },
    }


def choose_decay(
    config: LinearProbeAdamWConfig, train: Features, held_out: Features, classes: int, mesh: Mesh
) -> tuple[float, float, dict[str, float]]:
    """(the best weight decay, its share of hits among the held-out examples, that of every one that was tried)."""
    shares = {}

    def share(index: int) -> float:
        ranks = ranks_after(config, train, held_out, classes, float(WEIGHT_DECAYS[index]), mesh)
        shares[index] = float(np.mean(ranks == 0))
        return shares[index]

    peak, tried = scores.search_peak(len(WEIGHT_DECAYS), COARSE, share)
    return float(WEIGHT_DECAYS[peak]), shares[peak], {f"{WEIGHT_DECAYS[index]:.4g}": shares[index] for index in tried}


def ranks_after(
    config: LinearProbeAdamWConfig, train: Features, test: Features, classes: int, decay: float, mesh: Mesh
) -> np.ndarray:
    """[N]: the ranks (see scores.linear_ranks) of the test examples after training with a weight decay."""
    kernel, bias = first_weights(train.x.shape[1], classes, config.seed)
    order = batch_order(len(train.labels), config.batch_size, config.epochs, config.seed)
    kernel, bias = train_layer(train.x, train.labels, order, kernel, bias, config.learning_rate, decay, mesh)
    return scores.linear_ranks(test.x, kernel, bias, test.labels, mesh)


def first_weights(width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kernel [width, classes], bias [classes]) float32, uniform within 1 / sqrt(width) of 0, as torch's Linear."""
    rng, bound = np.random.default_rng(seed), 1 / math.sqrt(width)
    kernel, bias = rng.uniform(-bound, bound, (width, classes)), rng.uniform(-bound, bound, classes)
    return kernel.astype(np.float32), bias.astype(np.float32)


def batch_order(examples: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """[steps, batch_size] int32: every example once an epoch, in another order each time; -1 fills the last batch."""
    rng, steps = np.random.default_rng(seed), -(-examples // batch_size)
    order = np.full((epochs, steps * batch_size), -1, np.int32)
    for row in order:
        row[:examples] = rng.permutation(examples)
    return order.reshape(-1, batch_size)


def train_layer(
    x: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    learning_rate: float,
    weight_decay: float,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and bias after one AdamW update for each row of `order`, on the mean cross-entropy of its examples.

    x: [N, D] float32, spread over the mesh; order: [steps, B], -1: no example. The update is that of torch's AdamW
    (betas 0.9 and 0.999, epsilon 1e-8), which decays the bias too; step i has the rate
    learning_rate * (1 + cos(pi i / steps)) / 2.
    """
    pad = -len(x) % batch_shards(mesh)
    rows, everywhere = to_mesh(np.pad(x, ((0, pad), (0, 0))), batch_sharding(mesh)), replicated(mesh)
    share = np.arange(len(order)) / len(order)
    rates = (learning_rate * 0.5 * (1 + np.cos(np.pi * share))).astype(np.float32)
    inputs = [to_mesh(part, everywhere) for part in (kernel, bias, labels.astype(np.int32), order, rates)]
    return to_host(_train(mesh)(rows, *inputs, np.float32(weight_decay)))


@functools.cache
def _train(mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The jitted loop over all updates."""
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)

    def loss(parameters: tuple, rows: jax.Array, target: jax.Array, counted: jax.Array) -> jax.Array:
        scores = jnp.matmul(rows, parameters[0], precision="highest") + parameters[1]
        each = optax.softmax_cross_entropy_with_integer_labels(scores, target)
        return jnp.sum(jnp.where(counted, each, 0)) / jnp.sum(counted)

    def run(x, kernel, bias, labels, order, rates, decay):
        def update(state: tuple, step: tuple) -> tuple:
            (parameters, moments), (index, rate) = state, step
            counted = index >= 0
            index = jnp.where(counted, index, 0)
            gradient = jax.grad(loss)(parameters, x[index], labels[index], counted)
            direction, moments = adam.update(gradient, moments)
            apply = lambda p, d: p * (1 - rate * decay) - rate * d  # noqa: E731
            return (jax.tree.map(apply, parameters, direction), moments), None

        parameters = (kernel, bias)
        (parameters, _), _ = jax.lax.scan(update, (parameters, adam.init(parameters)), (order, rates))
        return parameters

    return jax.jit(run, out_shardings=replicated(mesh))
