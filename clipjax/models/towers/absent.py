"""No tower: a model with one of these has only the other tower, as published image or text models have.

It has no parameters, and no temperature, which compares two towers. It can be embedded with, evaluated where one tower
is enough, and give its tower to a run (config.init_from). It cannot be trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ConfigError, ImageTowerConfig, TextTowerConfig
from clipjax.models.pixels import Patches
from clipjax.models.tower_flops import TowerFlops
from clipjax.models.towers.tower import Tower, TowerOutput, no_hidden_states, square_image, token_ids


@dataclass(frozen=True)
class NoImageConfig(ImageTowerConfig):
    """The options of every image tower, which nothing reads."""

    name: str = "absent"


@dataclass(frozen=True)
class NoTextConfig(TextTowerConfig):
    """The options of every text tower, which nothing reads."""

    name: str = "absent"


class NoTower(nn.Module):
    """An input of B examples -> TowerOutput of zeros, for the shapes of a model; DualEncoder refuses to embed with it.

    Raises ConfigError for hidden_layers: it has none to give.
    """

    config: ImageTowerConfig | TextTowerConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array | Patches, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        no_hidden_states(self.config.name, hidden_layers)
        rows = (x.pixels if isinstance(x, Patches) else x).shape[0]
        return TowerOutput(
            jnp.zeros((rows, self.embed_dim), self.dtype), jnp.zeros((rows, 1, self.config.width), self.dtype)
        )


def refusal(side: str) -> ConfigError:
    """The error for images or texts ("image" or "text") that a model without their tower should embed."""
    other = {"image": "text", "text": "image"}[side]
    return ConfigError(
        f"These weights have only {a_tower(other)} (config.model.{side}.name='absent') and cannot embed {side}s. "
        f"Use weights with both towers, or train a run with both from these (config.init_{other}_from)."
    )


def a_tower(side: str) -> str:
    """ "an image tower" or "a text tower"."""
    return f"{'an' if side == 'image' else 'a'} {side} tower"


def _check(config: ImageTowerConfig | TextTowerConfig, embed_dim: int) -> None:
    """Nothing can be wrong with it."""


def _no_flops(config: ImageTowerConfig | TextTowerConfig, embed_dim: int) -> TowerFlops:
    return TowerFlops(0, 0, (1, config.width))


IMAGE_TOWER = Tower(NoTower, NoImageConfig, _check, square_image, _no_flops, absent=True)
TEXT_TOWER = Tower(NoTower, NoTextConfig, _check, token_ids, _no_flops, absent=True)
