"""Multinomial logistic regression with an L2 penalty, on a mesh: scikit-learn's LogisticRegression in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.eval.scores import MAX_SCORES
from clipjax.mesh import BATCH_AXES, batch_shards, replicated, to_mesh

GRADIENT_TOLERANCE, LINE_SEARCH = 1e-4, 50  # scikit-learn's


class Classifier(NamedTuple):
    """Scores are x @ kernel + bias; the class with the highest is predicted."""

    kernel: np.ndarray  # [D, C] float64
    bias: np.ndarray  # [C] float64; -inf for a class without training examples
    iterations: int
    converged: bool


class LogisticRegression:
    """Training examples on a mesh, to fit with any penalty. All processes make and call it together.

    minimise  mean_i -log softmax(W x_i + b)[y_i]  +  |W|^2 / (2 C N)

    by L-BFGS from zeros. For two classes it is the binomial loss of one weight vector, as in scikit-learn. Classes that
    do not occur are left out, so that none of them is ever predicted.

    x: [N, D] float32; labels: [N] below classes, at least two of which occur. Rows are spread over the mesh's batch
    axes, and scores exist for a block of them at a time.
    """

    def __init__(self, x: np.ndarray, labels: np.ndarray, classes: int, mesh: Mesh, max_scores: int = MAX_SCORES):
        self.occur, targets = np.unique(labels, return_inverse=True)
        self.classes, self.shape, self.mesh = classes, x.shape, mesh
        shards, outputs = batch_shards(mesh), len(self.occur)
        rows = -(-min(max(1, max_scores // outputs), len(x)) // shards) * shards
        blocks = -(-len(x) // rows)
        pad = blocks * rows - len(x)
        sharding = NamedSharding(mesh, P(None, BATCH_AXES))
        self.x = to_mesh(np.pad(x, ((0, pad), (0, 0))).reshape(blocks, rows, -1), sharding)
        # -1: padding
        targets = np.pad(targets, (0, pad), constant_values=-1).astype(np.int32).reshape(blocks, rows)
        self.targets = to_mesh(targets, sharding)
        self.loss = _jitted(mesh)

    def fit(self, c: float, max_iterations: int = 1000) -> Classifier:
        """The classifier of the penalty 1 / c."""
        import scipy.optimize  # here, because it takes as long to import as the rest of clipjax

        count, width = self.shape
        columns = 1 if len(self.occur) == 2 else len(self.occur)

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            penalty = np.float64(1.0 / (c * count))
            value, gradient = self.loss(parameters.reshape(width + 1, columns), self.x, self.targets, penalty, count)
            return float(value), np.asarray(gradient, np.float64).ravel()

        with jax.enable_x64(True):
            found = scipy.optimize.minimize(
                loss,
                np.zeros((width + 1) * columns),
                method="L-BFGS-B",
                jac=True,
                options={
                    "maxiter": max_iterations,
                    "maxls": LINE_SEARCH,
                    "gtol": GRADIENT_TOLERANCE,
                    "ftol": 64 * np.finfo(float).eps,
                },
            )
        parameters = found.x.reshape(width + 1, columns)
        if columns == 1:
            parameters = np.concatenate([np.zeros_like(parameters), parameters], axis=1)
        kernel, bias = np.zeros((width, self.classes)), np.full(self.classes, -np.inf)
        kernel[:, self.occur], bias[self.occur] = parameters[:-1], parameters[-1]
        return Classifier(kernel, bias, int(found.nit), bool(found.status == 0))


@functools.cache
def _jitted(mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return jax.jit(_loss, out_shardings=replicated(mesh))


def _loss(
    parameters: jax.Array, x: jax.Array, targets: jax.Array, penalty: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient [D + 1, columns]; x: [blocks, rows, D], targets: [blocks, rows], -1: padding."""
    kernel, bias = parameters[:-1], parameters[-1]
    binary = parameters.shape[1] == 1

    def add(total: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple:
        rows, target = block[0].astype(kernel.dtype), block[1]
        counted = target >= 0
        scores = jnp.matmul(rows, kernel, precision="highest") + bias
        if binary:
            scores = jnp.concatenate([jnp.zeros_like(scores), scores], axis=1)
        log_share = jax.nn.log_softmax(scores)
        wanted = jnp.where(counted, target, 0)[:, None]
        value = -jnp.sum(jnp.where(counted, jnp.take_along_axis(log_share, wanted, axis=1)[:, 0], 0))
        error = jnp.where(counted[:, None], jnp.exp(log_share) - (jnp.arange(scores.shape[1]) == wanted), 0)
        error = error[:, 1:] if binary else error
        gradient = jnp.concatenate([jnp.matmul(rows.T, error, precision="highest"), error.sum(0)[None]])
        return (total[0] + value, total[1] + gradient), None

    zeros = (jnp.zeros((), kernel.dtype), jnp.zeros_like(parameters))
    (value, gradient), _ = jax.lax.scan(add, zeros, (x, targets))
    value = value / count + 0.5 * penalty * jnp.sum(kernel**2)
    return value, (gradient / count).at[:-1].add(penalty * kernel)
