"""CLIP's loss plus captioning: the mean negative log-likelihood of the batch's caption tokens (Yu et al. 2205.01917).

L = contrastive_weight L_con + caption_weight L_cap, eq. 4; as open_clip.loss.CoCaLoss, except that the mean over tokens
is the GLOBAL batch's and not the mean of every device's own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clipjax.config import LossConfig
from clipjax.losses import softmax
from clipjax.losses.pairs import Inputs, Loss


def features(inputs: Inputs, config: LossConfig) -> tuple[dict, dict]:
    rows, columns = softmax.features(inputs, config)
    return rows | {"weight": jnp.full_like(rows["scale"], config.contrastive_weight)}, columns


def per_example(r: dict, c: dict, row: dict, column: dict) -> dict[str, jax.Array]:
    return {"contrastive": row["weight"] * softmax.per_example(r, c, row, column)["softmax"]}


def captioning(inputs: Inputs, config: LossConfig) -> dict[str, jax.Array]:
    tokens = jnp.maximum(inputs.caption_tokens.sum(), 1.0)
    return {"caption": config.caption_weight * inputs.caption_nll.sum() / tokens}


LOSS = Loss(features, softmax.terms, per_example, extra=captioning, needs=("caption_nll", "caption_tokens"))
