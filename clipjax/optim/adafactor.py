"""Adafactor (Shazeer & Stern 2018), as torch.optim.Adafactor.

It has no first moment and clips updates to a root mean square of 1. The learning rate is relative to each parameter's
root mean square: try 1e-2.
"""

from __future__ import annotations

from dataclasses import dataclass

import optax

from clipjax.config import OptimizerConfig, Part
from clipjax.optim.updates import per_layer, with_decay


@dataclass(frozen=True)
class AdafactorConfig(OptimizerConfig):
    name: str = "adafactor"


def make(config: AdafactorConfig) -> optax.GradientTransformation:
    direction = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return with_decay(config, per_layer(direction))


OPTIMIZER = Part(AdafactorConfig, make)
