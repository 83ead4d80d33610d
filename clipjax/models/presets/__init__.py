"""Published models by name. Shapes are those of the papers and reference code; tests compare parameter counts."""

from __future__ import annotations

from clipjax.config import ModelConfig, nearest, require
from clipjax.models.presets.bert import BERT_PRESETS
from clipjax.models.presets.clip import CLIP_PRESETS
from clipjax.models.presets.conv import CONV_PRESETS
from clipjax.models.presets.eva import EVA_PRESETS
from clipjax.models.presets.open_clip import OPEN_CLIP_PRESETS
from clipjax.models.presets.siglip import SIGLIP_PRESETS
from clipjax.models.presets.timm import TIMM_PRESETS

PRESETS: dict[str, ModelConfig] = {
    **CLIP_PRESETS,
    **SIGLIP_PRESETS,
    **CONV_PRESETS,
    **EVA_PRESETS,
    **OPEN_CLIP_PRESETS,
    **BERT_PRESETS,
    **TIMM_PRESETS,
}


def get_preset(name: str) -> ModelConfig:
    """The ModelConfig of a published model. Raises ConfigError naming the nearest known one."""
    require(name in PRESETS, f"Unknown preset '{name}'.{nearest(name, PRESETS)}")
    return PRESETS[name]
