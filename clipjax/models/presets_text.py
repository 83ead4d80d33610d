"""The text tower that OpenAI's, OpenCLIP's and EVA-CLIP's models share but for its size."""

from __future__ import annotations

from clipjax.config import TextTowerConfig


def clip_text(width: int, depth: int = 12, activation: str = "gelu") -> TextTowerConfig:
    """openai/CLIP clip/model.py: heads of 64, an MLP four times as wide, causal, pooled at the largest id."""
    return TextTowerConfig(width=width, depth=depth, num_heads=width // 64, mlp_dim=4 * width, activation=activation)
