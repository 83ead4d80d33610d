"""EVA-CLIP's models (2303.15389, 2402.04252): shapes of baaivision/EVA rei/model_configs and of timm's trunks."""

from __future__ import annotations

from clipjax.config import ModelConfig
from clipjax.models.presets.shared import at_size, clip_model


def _model(*shape, **options) -> ModelConfig:
    """clip_model with EVA's image tower."""
    eva = dict(pre_norm=False, patch_bias=True, projection_bias=True, norm_eps=1e-6, qkv_bias="qv")
    return clip_model(*shape, **{**eva, **options})


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
    "eva02_clip_l14_336": at_size(_L14, 336),
    "eva02_clip_bige14": _model(224, 14, _E, (1024, 24), 1024, post_norm=True),
    "eva02_clip_bige14_plus": _model(224, 14, _E, (1280, 32), 1024, post_norm=True),
    "eva_clip_8b": _8B,
    "eva_clip_8b_448": at_size(_8B, 448),
    "eva_clip_18b": _model(
        224, 14, (5120, 48, 40, 25_600), (1280, 32), 1536, norm="rms", qkv_bias="none", post_norm=True
    ),
}
