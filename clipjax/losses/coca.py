"""CLIP's loss plus captioning: the mean negative log-likelihood of the batch's caption tokens (Yu et al. 2205.01917).

L = contrastive_weight L_con + caption_weight L_cap, eq. 4; as open_clip.loss.CoCaLoss, except that the mean over tokens
is that of the GLOBAL batch instead of each device's own.
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
from clipjax.losses.loss import Inputs, Loss, Uninformed


@dataclass(frozen=True)
class CocaConfig(LossConfig):
    name: str = "coca"
    contrastive_weight: float = experiment(1.0, within=WEIGHT, fixed=OBJECTIVE)
    caption_weight: float = experiment(2.0, within=WEIGHT, fixed=OBJECTIVE)


def make(config: CocaConfig) -> Loss:
    def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
        return {"contrastive": config.contrastive_weight * softmax.per_example(r, c, row, column)["softmax"]}

    def captioning(inputs: Inputs) -> dict[str, jax.Array]:
        tokens = jnp.maximum(inputs.caption_tokens.sum(), 1.0)
        return {"caption": config.caption_weight * inputs.caption_nll.sum() / tokens}

    def uninformed(pairs: int) -> Uninformed:
        """The contrastive part's; captions can be learned without the images."""
        value, weight = math.log(pairs), config.contrastive_weight
        return Uninformed(weight * value, f"{weight:g} ln {pairs}", ("contrastive",))

    needs = ("caption_nll", "caption_tokens")
    return Loss(
        softmax.features, softmax.terms, per_example, extra=captioning, needs=needs,
        uninformed=uninformed if config.contrastive_weight else None,
    )  # fmt: skip


def check(config: CocaConfig, model: ModelConfig) -> None:
    """Refuses a model without a decoder. Raises ConfigError."""
    require(
        model.decoder.depth > 0,
        f"config.loss.name='{config.name}' with config.model.decoder.depth={model.decoder.depth}: captioning needs a "
        "decoder (depth 6 for CoCa-Base).",
    )


LOSS = Part(CocaConfig, make, check)
