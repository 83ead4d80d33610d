"""OpenCLIP's published models with an image tower that only timm has: PE-Core, MobileCLIP, ViTamin."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ModelConfig
from clipjax.models.presets.shared import clip_model, clip_text
from clipjax.models.towers.conv_stem_vit import ConvStemViTConfig
from clipjax.models.towers.vitamin import ViTaminConfig


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


def _vitamin(size: str, image_size: int, text: tuple[int, int], embed_dim: int) -> ModelConfig:
    """open_clip model_configs/ViTamin-*.json (2404.02132)."""
    width, depth, num_heads, stage_widths = {
        "s": (384, 14, 6, (64, 128)),
        "b": (768, 14, 12, (128, 256)),
        "l": (1024, 31, 16, (160, 320)),
        "xl": (1152, 32, 16, (192, 384)),
    }[size]
    shape = dict(width=width, depth=depth, num_heads=num_heads, mlp_dim=2 * width)
    position = "none" if size == "xl" else "learned"
    image = ViTaminConfig(image_size=image_size, stage_widths=stage_widths, position=position, drop_path=0.1, **shape)
    tower = clip_text(*text)
    return ModelConfig(image=image, text=replace(tower, num_heads=16) if size == "xl" else tower, embed_dim=embed_dim)


_CLASS = dict(class_token=True, rope_offset=1.0)
_SIZES = {"": 224, "_256": 256, "_336": 336, "_384": 384}

TIMM_PRESETS: dict[str, ModelConfig] = {
    "pe_core_t16_384": _pe_core(384, 16, (192, 12, 3, 768), (512, 12), 512, **_CLASS),
    "pe_core_s16_384": _pe_core(384, 16, (384, 12, 6, 1536), (512, 12), 512, **_CLASS),
    "pe_core_b16_224": _pe_core(224, 16, (768, 12, 12, 3072), (1024, 24), 1024, **_CLASS),
    "pe_core_l14_336": _pe_core(336, 14, (1024, 24, 16, 4096), (1024, 24), 1024, **_CLASS),
    "pe_core_g14_448": _pe_core(448, 14, (1536, 50, 16, 8960), (1280, 24), 1280, 72),
    "mobileclip_b": _mobileclip_b(),
    "mobileclip2_b": _mobileclip_b(),
    "mobileclip2_l14": _mobileclip2_l14(),
    "vitamin_s": _vitamin("s", 224, (384, 12), 384),
    "vitamin_s_ltt": _vitamin("s", 224, (768, 12), 768),
    "vitamin_b": _vitamin("b", 224, (512, 12), 512),
    "vitamin_b_ltt": _vitamin("b", 224, (768, 12), 768),
    **{f"vitamin_l{suffix}": _vitamin("l", size, (768, 12), 768) for suffix, size in _SIZES.items()},
    **{f"vitamin_l2{suffix}": _vitamin("l", size, (1024, 24), 1024) for suffix, size in _SIZES.items()},
    **{f"vitamin_xl_{size}": _vitamin("xl", size, (1152, 27), 1152) for size in (256, 336, 384)},
}
