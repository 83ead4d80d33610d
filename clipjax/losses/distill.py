"""CLIP's loss plus cross-entropy against a teacher's rows and columns of similarities.

For each direction: the mean over i of -sum_j softmax_j(teacher s_ij) log softmax_j(s_ij), halved and added with
config.loss.distill_weight; as open_clip.loss.DistillClipLoss (and, with a KL's constant, TinyCLIP 2309.12314). The
teacher's embeddings come in the Inputs, carry no gradient and may have another width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig
from clipjax.losses import softmax
from clipjax.losses.pairs import Inputs, Loss, Pairs
from clipjax.losses.reductions import LogSumExp, SoftmaxMean
from clipjax.losses.tiles import scaled, similarities


def features(inputs: Inputs, config: LossConfig) -> tuple[dict, dict]:
    rows, columns = softmax.features(inputs, config)
    scale = rows["scale"]
    rows |= {
        "teacher": inputs.teacher_image_embedding,
        "teacher_scale": jnp.broadcast_to(inputs.teacher_logit_scale, scale.shape),
        "weight": jnp.full_like(scale, config.distill_weight),
    }
    return rows, columns | {"teacher": inputs.teacher_text_embedding}


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    s = without = softmax.logits(row, column)
    teacher = jax.lax.stop_gradient(similarities(scaled(row["teacher"], row["teacher_scale"]), column["teacher"]))
    if pairs.ignored is not None:
        without, teacher = (softmax.without(a, pairs.ignored) for a in (s, teacher))
    found = {"lse": LogSumExp(without), "teacher": SoftmaxMean(teacher, s), **softmax.positive_terms(s, pairs)}
    return found, found


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    by_teacher = sum(side["lse"] - side["teacher"][0] for side in (r, c))
    return softmax.per_example(r, c, row, column) | {"distill": 0.5 * row["weight"] * by_teacher}


LOSS = Loss(
    features,
    terms,
    per_example,
    needs=("teacher_image_embedding", "teacher_text_embedding", "teacher_logit_scale"),
)
