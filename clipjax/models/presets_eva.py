"""EVA-CLIP's models (2303.15389, 2402.04252): shapes of baaivision/EVA rei/model_configs and of timm's trunks."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ImageTowerConfig, ModelConfig
from clipjax.models.presets_text import clip_text


def _model(
    image_size: int,
    patch_size: int,
    image: tuple[int, int, int, int],
    text: tuple[int, int],
    embed_dim: int,
    **options,
) -> ModelConfig:
    """image (width, depth, heads, mlp_dim), text (width, depth); the text tower is CLIP's, its heads of 64."""
    width, depth, num_heads, mlp_dim = image
    return ModelConfig(
        image=ImageTowerConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            pre_norm=False,
            patch_bias=True,
            projection_bias=True,
            norm_eps=1e-6,
            **{"qkv_bias": "qv", **options},
        ),
        text=clip_text(*text),
        embed_dim=embed_dim,
    )


def _at(model: ModelConfig, image_size: int) -> ModelConfig:
    return replace(model, image=replace(model.image, image_size=image_size))


_SWIGLU = dict(mlp="swiglu", rope=True)
_SUB_NORMS = dict(attention_norm=True, mlp_norm=True, **_SWIGLU)
_G = (1408, 40, 16, 6144)
_E = (1792, 64, 16, 15_360)
_L14 = _model(224, 14, (1024, 24, 16, 2730), (768, 12), 768, **_SUB_NORMS)
_8B = _model(224, 14, (4096, 32, 32, 20_480), (1280, 32), 1280, norm="rms", qkv_bias="none")

EVA_PRESETS: dict[str, ModelConfig] = {
    "eva01_clip_g14": _model(224, 14, _G, (768, 12), 1024),
    "eva01_clip_g14_plus": _model(224, 14, _G, (1024, 24), 1024),
    # EVA-02's two small trunks (2303.11331, table 1) were published without a text tower: OpenCLIP's for their widths.
    "eva02_clip_ti14": _model(224, 14, (192, 12, 3, 512), (256, 10), 256, **_SWIGLU),
    "eva02_clip_s14": _model(224, 14, (384, 12, 6, 1024), (384, 12), 384, **_SWIGLU),
    "eva02_clip_b16": _model(224, 16, (768, 12, 12, 2048), (512, 12), 512, **_SUB_NORMS),
    "eva02_clip_l14": _L14,
    "eva02_clip_l14_336": _at(_L14, 336),
    "eva02_clip_bige14": _model(224, 14, _E, (1024, 24), 1024, post_norm=True),
    "eva02_clip_bige14_plus": _model(224, 14, _E, (1280, 32), 1024, post_norm=True),
    "eva_clip_8b": _8B,
    "eva_clip_8b_448": _at(_8B, 448),
    "eva_clip_18b": _model(
        224, 14, (5120, 48, 40, 25_600), (1280, 32), 1536, norm="rms", qkv_bias="none", post_norm=True
    ),
}
