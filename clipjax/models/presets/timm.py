"""OpenCLIP's published models with a timm ViT as the image tower that no other library has: PE-Core, MobileCLIP."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ModelConfig
from clipjax.models.presets.shared import clip_model, clip_text
from clipjax.models.towers.conv_stem_vit import ConvStemViTConfig


def _pe_core(
    image_size: int,
    patch_size: int,
    image: tuple[int, int, int, int],
    text: tuple[int, int],
    embed_dim: int,
    context_length: int = 32,
    **options,
) -> ModelConfig:
    """Perception Encoder (2504.13181): learned and rotary positions, a MAP head of 8 heads; tokens of CLIP's BPE."""
    model = clip_model(
        image_size,
        patch_size,
        image,
        text,
        embed_dim,
        pool="map",
        map_heads=8,
        map_mlp_dim=4 * image[0],
        projection_bias=True,
        rope=True,
        rope_grid=image_size // patch_size,
        rope_axes="xy",
        **options,
    )
    return replace(model, text=replace(model.text, context_length=context_length))


def _mobileclip_b() -> ModelConfig:
    """open_clip model_configs/MobileCLIP-B.json and MobileCLIP2-B.json (2311.17049, 2508.20691)."""
    image = ConvStemViTConfig(pre_norm=False, projection_bias=True, class_position=False, norm_eps=1e-6)
    return ModelConfig(image=image, text=clip_text(512))


def _mobileclip2_l14() -> ModelConfig:
    """open_clip model_configs/MobileCLIP2-L-14.json: CLIP's image tower and a text tower that sees both ways."""
    model = clip_model(224, 14, (1024, 24, 16, 4096), (768, 12), 768, projection_bias=True, drop_path=0.1)
    return replace(model, text=replace(model.text, causal=False))


_CLASS = dict(class_token=True, rope_offset=1.0)

TIMM_PRESETS: dict[str, ModelConfig] = {
    "pe_core_t16_384": _pe_core(384, 16, (192, 12, 3, 768), (512, 12), 512, **_CLASS),
    "pe_core_s16_384": _pe_core(384, 16, (384, 12, 6, 1536), (512, 12), 512, **_CLASS),
    "pe_core_b16_224": _pe_core(224, 16, (768, 12, 12, 3072), (1024, 24), 1024, **_CLASS),
    "pe_core_l14_336": _pe_core(336, 14, (1024, 24, 16, 4096), (1024, 24), 1024, **_CLASS),
    "pe_core_g14_448": _pe_core(448, 14, (1536, 50, 16, 8960), (1280, 24), 1280, 72),
    "mobileclip_b": _mobileclip_b(),
    "mobileclip2_b": _mobileclip_b(),
    "mobileclip2_l14": _mobileclip2_l14(),
}
