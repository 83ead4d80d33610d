"""LAMB (You et al. 2020).

Decay is part of the direction. Each layer has its own trust ratio |parameter| / |direction|. It applies to the
parameters that decay, as in the authors' code and timm's Lamb.
"""

from __future__ import annotations

from dataclasses import dataclass

import optax

from clipjax.config import Part
from clipjax.optim.updates import AdamConfig, adam, decayed, per_layer


@dataclass(frozen=True)
class LambConfig(AdamConfig):
    name: str = "lamb"


def make(config: LambConfig) -> optax.GradientTransformation:
    return optax.chain(
        adam(config),
        optax.add_decayed_weights(config.weight_decay, decayed),
        per_layer(optax.masked(optax.scale_by_trust_ratio(), decayed)),
        optax.scale(config.learning_rate),
    )


OPTIMIZER = Part(LambConfig, make)
