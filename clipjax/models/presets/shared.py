"""The shape that OpenAI's, OpenCLIP's and EVA-CLIP's published models share; they differ in sizes."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ModelConfig
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig


def clip_model(
    image_size: int,
    patch_size: int,
    image: tuple[int, int, int, int],
    text: tuple[int, int],
    embed_dim: int,
    **options,
) -> ModelConfig:
    """image (width, depth, heads, mlp_dim), text (width, depth); options: further fields of ViTConfig."""
    width, depth, num_heads, mlp_dim = image
    return ModelConfig(
        image=ViTConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            **options,
        ),
        text=clip_text(*text),
        embed_dim=embed_dim,
    )


def clip_text(width: int, depth: int = 12, activation: str = "gelu") -> TextTransformerConfig:
    """openai/CLIP clip/model.py: heads of 64, an MLP four times as wide, causal, pooled at the largest id."""
    shape = dict(width=width, depth=depth, num_heads=width // 64, mlp_dim=4 * width)
    return TextTransformerConfig(**shape, activation=activation)


def at_size(model: ModelConfig, image_size: int) -> ModelConfig:
    """The same model for images of another size, in pixels."""
    return replace(model, image=replace(model.image, image_size=image_size))
