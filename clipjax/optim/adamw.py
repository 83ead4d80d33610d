"""AdamW (Loshchilov & Hutter 2019), as torch.optim.AdamW."""

from __future__ import annotations

from dataclasses import dataclass

import optax

from clipjax.config import Part
from clipjax.optim.updates import AdamConfig, adam, with_decay


@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    name: str = "adamw"


def make(config: AdamWConfig) -> optax.GradientTransformation:
    return with_decay(config, adam(config))


OPTIMIZER = Part(AdamWConfig, make)
