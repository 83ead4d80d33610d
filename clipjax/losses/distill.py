"""CLIP's loss plus cross-entropy against a teacher's rows and columns of similarities.

For each direction: the mean over i of -sum_j softmax_j(teacher s_ij) log softmax_j(s_ij), halved and added with
config.loss.distill_weight; as open_clip.loss.DistillClipLoss (and, up to a KL divergence's constant, TinyCLIP
2309.12314). The teacher's embeddings are part of the Inputs, carry no gradient and may have another width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig, ModelConfig, Part, require
from clipjax.config.fields import OBJECTIVE, experiment
from clipjax.config.ranges import WEIGHT
from clipjax.losses import softmax
from clipjax.losses.loss import Inputs, Loss, Pairs, Uninformed
from clipjax.losses.reductions import LogSumExp, SoftmaxMean
from clipjax.losses.tiles import scaled, similarities


@dataclass(frozen=True)
class DistillConfig(LossConfig):
    name: str = "distill"
    teacher: str = experiment("", fixed=OBJECTIVE)  # the --workdir of the teacher's run
    distill_weight: float = experiment(1.0, within=WEIGHT, fixed=OBJECTIVE)


def features(inputs: Inputs) -> tuple[dict, dict]:
    rows, columns = softmax.features(inputs)
    rows |= {
        "teacher": inputs.teacher_image_embedding,
        "teacher_scale": jnp.broadcast_to(inputs.teacher_logit_scale, rows["scale"].shape),
    }
    return rows, columns | {"teacher": inputs.teacher_text_embedding}


def terms(row: dict, column: dict, pairs: Pairs) -> tuple[dict, dict]:
    s = softmax.logits(row, column)
    teacher = jax.lax.stop_gradient(similarities(scaled(row["teacher"], row["teacher_scale"]), column["teacher"]))

    def each(s: jax.Array) -> dict:
        return {
            "lse": LogSumExp(softmax.without(s, pairs.ignored)),
            "teacher": SoftmaxMean(softmax.without(teacher, pairs.ignored), s),
        }

    return softmax.both_sides(each, s, pairs)


def make(config: DistillConfig) -> Loss:
    def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
        by_teacher = sum(side["lse"] - side["teacher"][0] for side in (r, c))
        return softmax.per_example(r, c, row, column) | {"distill": 0.5 * config.distill_weight * by_teacher}

    def uninformed(pairs: int) -> Uninformed:
        """Against equal similarities, any row of the teacher's costs ln B as well."""
        weight = 1 + config.distill_weight
        return Uninformed(weight * math.log(pairs), f"{weight:g} ln {pairs}")

    needs = ("teacher_image_embedding", "teacher_text_embedding", "teacher_logit_scale")
    return Loss(features, terms, per_example, needs=needs, uninformed=uninformed)


def check(config: DistillConfig, model: ModelConfig) -> None:
    """Refuses a student without a teacher. Raises ConfigError."""
    del model
    require(
        bool(config.teacher),
        f"config.loss.name='{config.name}' with config.loss.teacher='': set it to the --workdir of the teacher's run.",
    )


LOSS = Part(DistillConfig, make, check)
