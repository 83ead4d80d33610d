"""Published models by name. Shapes from the papers and reference code; parameter counts are tested."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ImageTowerConfig, ModelConfig, TextTowerConfig, nearest, require
from clipjax.models.presets_conv import CONV_PRESETS


def get_preset(name: str) -> ModelConfig:
    """The ModelConfig of a published model. Raises ConfigError naming the nearest known one."""
    require(name in PRESETS, f"Unknown preset '{name}'.{nearest(name, PRESETS)}")
    return PRESETS[name]


def _clip(image_size: int, patch_size: int, width: int, depth: int, text_width: int, embed_dim: int) -> ModelConfig:
    """openai/CLIP clip/model.py: QuickGELU, heads of 64, causal text of 12 layers, pooled at the largest id."""
    image = ImageTowerConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=width // 64,
        mlp_dim=4 * width,
        activation="quick_gelu",
    )
    text = TextTowerConfig(
        width=text_width, num_heads=text_width // 64, mlp_dim=4 * text_width, activation="quick_gelu"
    )
    return ModelConfig(image=image, text=text, embed_dim=embed_dim)


def _siglip(image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_dim: int, context: int = 64):
    """big_vision models/vit.py and two_towers.py: MAP head, tanh GELU, bidirectional text, last position."""
    shared = dict(
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=mlp_dim,
        activation="gelu_tanh",
        norm_eps=1e-6,
        init="big_vision",
    )
    image = ImageTowerConfig(
        image_size=image_size,
        patch_size=patch_size,
        pool="map",
        pre_norm=False,
        patch_bias=True,
        projection=False,
        **shared,
    )
    text = TextTowerConfig(
        vocab_size=32_000, context_length=context, causal=False, pool="last", projection_bias=True, **shared
    )
    return ModelConfig(
        image=image,
        text=text,
        embed_dim=width,
        logit_scale_init=10.0,
        logit_scale_max=0.0,
        logit_bias_init=-10.0,
    )


def _at(model: ModelConfig, image_size: int, context: int | None = None) -> ModelConfig:
    text = model.text if context is None else replace(model.text, context_length=context)
    return replace(model, image=replace(model.image, image_size=image_size), text=text)


_SIGLIP_B16 = _siglip(224, 16, 768, 12, 12, 3072)
_SIGLIP_L16 = _siglip(256, 16, 1024, 24, 16, 4096)
_SIGLIP_SO400M14 = _siglip(224, 14, 1152, 27, 16, 4304, context=16)

PRESETS: dict[str, ModelConfig] = {
    "clip_vit_b32": _clip(224, 32, 768, 12, 512, 512),
    "clip_vit_b16": _clip(224, 16, 768, 12, 512, 512),
    "clip_vit_l14": _clip(224, 14, 1024, 24, 768, 768),
    "clip_vit_l14_336": _clip(336, 14, 1024, 24, 768, 768),
    "siglip_b16": _SIGLIP_B16,
    "siglip_b16_256": _at(_SIGLIP_B16, 256),
    "siglip_b16_384": _at(_SIGLIP_B16, 384),
    "siglip_b16_512": _at(_SIGLIP_B16, 512),
    "siglip_l16_256": _SIGLIP_L16,
    "siglip_l16_384": _at(_SIGLIP_L16, 384),
    "siglip_so400m14_224": _SIGLIP_SO400M14,
    "siglip_so400m14_384": _at(_SIGLIP_SO400M14, 384, context=64),
    **CONV_PRESETS,
}
