"""Lion (Chen et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import optax

from clipjax.config import Part
from clipjax.optim.updates import MomentsConfig, with_decay


@dataclass(frozen=True)
class LionConfig(MomentsConfig):
    name: str = "lion"


def make(config: LionConfig) -> optax.GradientTransformation:
    return with_decay(config, optax.scale_by_lion(config.b1, config.b2, mu_dtype=config.moment_dtype))


OPTIMIZER = Part(LionConfig, make)
