"""Towers and the dual encoder. To add a tower, write one file in models/towers and give it one row in a table there."""

from clipjax.models.dual_encoder import DualEncoder, DualEncoderOutput
from clipjax.models.presets import PRESETS, get_preset
from clipjax.models.towers import IMAGE_TOWERS, TEXT_TOWERS, image_tower, patch_budget, random_fields, text_tower
from clipjax.models.towers.tower import Tower, TowerOutput

__all__ = [
    "IMAGE_TOWERS",
    "PRESETS",
    "TEXT_TOWERS",
    "DualEncoder",
    "DualEncoderOutput",
    "Tower",
    "TowerOutput",
    "get_preset",
    "image_tower",
    "patch_budget",
    "random_fields",
    "text_tower",
]
