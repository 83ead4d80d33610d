"""CLIP's loss plus in-modal and cross-modal consistency (Goel et al. CyCLIP 2205.14459, eq. 3 and 4).

In-modal: 1/B sum_ij (x_i.x_j - y_i.y_j)^2; cross-modal: 1/B sum_ij (x_i.y_j - x_j.y_i)^2, cosines without the scale.
Neither needs a B x B matrix, nor the difference of two large sums, which would lose all digits where images and texts
agree. With d = x - y, m = x + y and a_ij = d_i.m_j they are sum_ij (a_ij + a_ji)^2 / 4 and sum_ij (a_ij - a_ji)^2 / 4.
With the Gram matrices d^T d, m^T m and K = d^T m of size D x D, sum_ij a_ij^2 = tr(d^T d m^T m) and
sum_ij a_ij a_ji = tr(K K), both of the order of |d|^2: 6 B D^2 FLOPs, and a collective of 3 D^2 elements whatever the
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, Part
from clipjax.config.fields import OBJECTIVE, experiment
from clipjax.config.ranges import WEIGHT
from clipjax.losses import softmax
from clipjax.losses.loss import Inputs, Loss
from clipjax.losses.reductions import in_pairs


@dataclass(frozen=True)
class CyclipConfig(LossConfig):
    name: str = "cyclip"
    in_modal_weight: float = experiment(0.25, within=WEIGHT, fixed=OBJECTIVE)
    cross_modal_weight: float = experiment(0.25, within=WEIGHT, fixed=OBJECTIVE)


def make(config: CyclipConfig) -> Loss:
    def consistency(inputs: Inputs) -> dict[str, jax.Array]:
        x, y = (e.astype(jnp.float32) for e in (inputs.image_embedding, inputs.text_embedding))
        difference, total = x - y, x + y
        mixed = _gram(difference, total)
        squares = _sum(_gram(difference, difference) * _gram(total, total))
        mirrored = _sum(mixed * mixed.T)
        return {
            "in_modal": config.in_modal_weight * 0.5 * (squares + mirrored) / x.shape[0],
            "cross_modal": config.cross_modal_weight * 0.5 * (squares - mirrored) / x.shape[0],
        }

    return Loss(softmax.features, softmax.terms, softmax.per_example, extra=consistency, uninformed=softmax.uninformed)


def _gram(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)


def _sum(a: jax.Array) -> jax.Array:
    return in_pairs(a.reshape(-1))


LOSS = Part(CyclipConfig, make)
