"""OpenAI's published ViTs (openai/CLIP). Its ResNets are in conv.py."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ModelConfig
from clipjax.models.presets.shared import clip_text
from clipjax.models.towers.vit import ViTConfig


def _clip(
    image_size: int, patch_size: int, width: int, depth: int, text_width: int, embed_dim: int, **text_options
) -> ModelConfig:
    """openai/CLIP clip/model.py: QuickGELU, heads of 64, text of 12 layers."""
    image = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=width // 64,
        mlp_dim=4 * width,
        activation="quick_gelu",
    )
    text = replace(clip_text(text_width, activation="quick_gelu"), **text_options)
    return ModelConfig(image=image, text=text, embed_dim=embed_dim)


CLIP_PRESETS: dict[str, ModelConfig] = {
    "clip_vit_b32": _clip(224, 32, 768, 12, 512, 512),
    "clip_vit_b16": _clip(224, 16, 768, 12, 512, 512),
    "clip_vit_l14": _clip(224, 14, 1024, 24, 768, 768),
    "clip_vit_l14_336": _clip(336, 14, 1024, 24, 768, 768),
    # Long-CLIP (2403.15378): texts of up to 248 tokens.
    "long_clip_vit_b16": _clip(224, 16, 768, 12, 512, 512, context_length=248),
    "long_clip_vit_l14": _clip(224, 14, 1024, 24, 768, 768, context_length=248),
}
