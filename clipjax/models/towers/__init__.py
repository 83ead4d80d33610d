"""The tables of towers. To add a tower, write one file and give it one row here."""

from __future__ import annotations

from collections.abc import Mapping

from clipjax.config import ImageTowerConfig, ModelConfig, PatchBudget, TextTowerConfig, nearest, require
from clipjax.models.towers import (
    absent,
    bert,
    conv_stem_vit,
    convnext,
    efficientnet,
    naflex,
    resnet,
    text,
    vit,
    vitamin,
)
from clipjax.models.towers.tower import Tower

# config.model.image.name -> the tower. Each tower's file holds its row, its options and its module.
IMAGE_TOWERS: dict[str, Tower] = {
    "vit": vit.TOWER,
    "conv_stem_vit": conv_stem_vit.TOWER,
    "vitamin": vitamin.TOWER,
    "naflex": naflex.TOWER,
    "resnet": resnet.TOWER,
    "efficientnet": efficientnet.TOWER,
    "convnext": convnext.TOWER,
    "absent": absent.IMAGE_TOWER,
}
# config.model.text.name -> the tower.
TEXT_TOWERS: dict[str, Tower] = {"transformer": text.TOWER, "bert": bert.TOWER, "absent": absent.TEXT_TOWER}


def image_tower(config: ImageTowerConfig) -> Tower:
    """The row of config.model.image. Raises ConfigError for an unknown name, or for another tower's dataclass."""
    return _row(config, IMAGE_TOWERS, "config.model.image")


def text_tower(config: TextTowerConfig) -> Tower:
    """The row of config.model.text. Raises ConfigError for an unknown name, or for another tower's dataclass."""
    return _row(config, TEXT_TOWERS, "config.model.text")


def random_fields(model: ModelConfig) -> list[str]:
    """The fields of config.model with which towers draw at random, and which are on: ["text.dropout"]."""
    rows = {"image": image_tower(model.image), "text": text_tower(model.text)}
    return sorted(
        f"{side}.{name}" for side, row in rows.items() for name in row.random if getattr(getattr(model, side), name)
    )


def towers_of(model: ModelConfig) -> tuple[str, ...]:
    """The towers that a model has: ("image", "text"), or one of them. Raises ConfigError as image_tower does."""
    rows = {"image": image_tower(model.image), "text": text_tower(model.text)}
    return tuple(side for side, row in rows.items() if not row.absent)


def require_tower(model: ModelConfig, side: str) -> None:
    """Raises ConfigError for a model without the tower that embeds `side`s ("image" or "text")."""
    if side not in towers_of(model):
        raise absent.refusal(side)


def patch_budget(config: ImageTowerConfig) -> PatchBudget | None:
    """How this tower's images are cut into patches; None for a tower that reads images of one size."""
    budget = image_tower(config).patch_budget
    return budget(config) if budget else None


def _row(config: ImageTowerConfig | TextTowerConfig, table: Mapping[str, Tower], where: str) -> Tower:
    require(config.name in table, f"{where}.name='{config.name}' is unknown.{nearest(config.name, table)}")
    row = table[config.name]
    require(
        isinstance(config, row.config),
        f"{where}.name='{config.name}' goes with {row.config.__name__}, not with {type(config).__name__}.",
    )
    return row
