"""CLIP's loss plus in-modal and cross-modal consistency (Goel et al. CyCLIP 2205.14459, eq. 3 and 4).

In-modal: 1/B sum_ij (x_i.x_j - y_i.y_j)^2; cross-modal: 1/B sum_ij (x_i.y_j - x_j.y_i)^2, cosines without the scale.
Neither needs a B x B matrix: with the Gram matrices X = x^T x, Y = y^T y and M = x^T y of size D x D,
sum_ij (x_i.x_j)(y_i.y_j) = |M|^2 and sum_ij (x_i.y_j)(x_j.y_i) = tr(M M), so they are |X|^2 - 2 |M|^2 + |Y|^2 and
2 tr(X Y) - 2 tr(M M): 6 B D^2 FLOPs, and a collective of 3 D^2 elements whatever the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, Part
from clipjax.config.fields import OBJECTIVE, experiment
from clipjax.config.ranges import NON_NEGATIVE
from clipjax.losses import softmax
from clipjax.losses.loss import Inputs, Loss


@dataclass(frozen=True)
class CyclipConfig(LossConfig):
    name: str = "cyclip"
    in_modal_weight: float = experiment(0.25, within=NON_NEGATIVE, fixed=OBJECTIVE)
    cross_modal_weight: float = experiment(0.25, within=NON_NEGATIVE, fixed=OBJECTIVE)


def make(config: CyclipConfig) -> Loss:
    def consistency(inputs: Inputs) -> dict[str, jax.Array]:
        x, y = (e.astype(jnp.float32) for e in (inputs.image_embedding, inputs.text_embedding))
        images, texts, mixed = _gram(x, x), _gram(y, y), _gram(x, y)
        in_modal = jnp.sum(images**2) - 2 * jnp.sum(mixed**2) + jnp.sum(texts**2)
        cross_modal = 2 * jnp.sum(images * texts) - 2 * jnp.sum(mixed * mixed.T)
        return {
            "in_modal": config.in_modal_weight * in_modal / x.shape[0],
            "cross_modal": config.cross_modal_weight * cross_modal / x.shape[0],
        }

    return Loss(softmax.features, softmax.terms, softmax.per_example, extra=consistency)


def _gram(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)


LOSS = Part(CyclipConfig, make)
