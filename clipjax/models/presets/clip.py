"""OpenAI's published ViTs (openai/CLIP). Its ResNets are in conv.py."""

from __future__ import annotations

from clipjax.config import ModelConfig
from clipjax.models.presets.shared import clip_text
from clipjax.models.towers.vit import ViTConfig


def _clip(image_size: int, patch_size: int, width: int, depth: int, text_width: int, embed_dim: int) -> ModelConfig:
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
    return ModelConfig(image=image, text=clip_text(text_width, activation="quick_gelu"), embed_dim=embed_dim)


CLIP_PRESETS: dict[str, ModelConfig] = {
    "clip_vit_b32": _clip(224, 32, 768, 12, 512, 512),
    "clip_vit_b16": _clip(224, 16, 768, 12, 512, 512),
    "clip_vit_l14": _clip(224, 14, 1024, 24, 768, 768),
    "clip_vit_l14_336": _clip(336, 14, 1024, 24, 768, 768),
}
