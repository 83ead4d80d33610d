"""OpenCLIP's published models with a ViT as the image tower: its own, the -quickgelu variants, CLIPA, CoCa."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import DecoderConfig, ModelConfig
from clipjax.models.presets.shared import at_size, clip_model


def _quick(model: ModelConfig) -> ModelConfig:
    """OpenAI's activation in OpenCLIP's towers, as in DFN's and MetaCLIP's models."""
    return replace(
        model,
        image=replace(model.image, activation="quick_gelu"),
        text=replace(model.text, activation="quick_gelu"),
    )


def _clipa(model: ModelConfig) -> ModelConfig:
    """CLIPA (2305.07017): BERT's word pieces, 32 of them, bidirectional; no ln_pre, mean of the patches, then ln_post.

    tanh GELU, as it was trained (UCSC-VLAA/CLIPA); OpenCLIP's files of the same weights have the exact one.
    """
    image = replace(model.image, pool="gap", class_token=True, norm_after_pool=True, pre_norm=False)
    text = replace(model.text, vocab_size=32_000, context_length=32, causal=False, pool="last")
    shared = dict(activation="gelu_tanh")
    return replace(model, image=replace(image, **shared), text=replace(text, **shared))


def _coca(model: ModelConfig) -> ModelConfig:
    """open_clip model_configs/coca_*.json: 256 pooled tokens, a class token behind the text, 12 decoder layers."""
    text = replace(model.text, context_length=76, pool="cls")
    return replace(
        model,
        image=replace(model.image, pool="attentional", class_token=True),
        text=text,
        decoder=DecoderConfig(depth=12, width=text.width, num_heads=text.num_heads, mlp_dim=text.mlp_dim),
    )


_B = (768, 12, 12, 3072)
_B_PLUS = (896, 12, 14, 3584)
_L = (1024, 24, 16, 4096)
_H = (1280, 32, 16, 5120)
_B32 = clip_model(224, 32, _B, (512, 12), 512)
_B16 = clip_model(224, 16, _B, (512, 12), 512)
_L14 = clip_model(224, 14, _L, (768, 12), 768)
_H14 = clip_model(224, 14, _H, (1024, 24), 1024)
_BIGG14 = clip_model(224, 14, (1664, 48, 16, 8192), (1280, 32), 1280)

OPEN_CLIP_PRESETS: dict[str, ModelConfig] = {
    "open_clip_vit_b32": _B32,
    "open_clip_vit_b32_256": at_size(_B32, 256),
    "open_clip_vit_b32_quickgelu": _quick(_B32),
    "open_clip_vit_b32_plus_256": clip_model(256, 32, _B_PLUS, (640, 12), 640),
    "open_clip_vit_b16": _B16,
    "open_clip_vit_b16_quickgelu": _quick(_B16),
    "open_clip_vit_b16_plus": clip_model(224, 16, _B_PLUS, (640, 12), 640),
    "open_clip_vit_b16_plus_240": clip_model(240, 16, _B_PLUS, (640, 12), 640),
    "open_clip_vit_l16": clip_model(224, 16, _L, (768, 12), 768),
    "open_clip_vit_l16_320": clip_model(320, 16, _L, (768, 12), 768),
    "open_clip_vit_l14": _L14,
    "open_clip_vit_l14_280": at_size(_L14, 280),
    "open_clip_vit_l14_336": at_size(_L14, 336),
    "open_clip_vit_l14_quickgelu": _quick(_L14),
    "open_clip_vit_l14_336_quickgelu": _quick(at_size(_L14, 336)),
    "open_clip_vit_h16": clip_model(224, 16, _H, (1024, 24), 1024),
    "open_clip_vit_h14": _H14,
    "open_clip_vit_h14_378": at_size(_H14, 378),
    "open_clip_vit_h14_quickgelu": _quick(_H14),
    "open_clip_vit_h14_378_quickgelu": _quick(at_size(_H14, 378)),
    "open_clip_vit_g14": clip_model(224, 14, (1408, 40, 16, 6144), (1024, 24), 1024),
    "open_clip_vit_bigg14": _BIGG14,
    "open_clip_vit_bigg14_quickgelu": _quick(_BIGG14),
    "open_clip_vit_e14": clip_model(224, 14, (1792, 56, 16, 15_360), (1280, 36), 1280),
    "clipa_vit_l14": _clipa(_L14),
    "clipa_vit_l14_336": at_size(_clipa(_L14), 336),
    "clipa_vit_h14": _clipa(_H14),
    "clipa_vit_h14_336": at_size(_clipa(_H14), 336),
    "clipa_vit_bigg14": _clipa(_BIGG14),
    "clipa_vit_bigg14_336": at_size(_clipa(_BIGG14), 336),
    "coca_vit_b32": _coca(_B32),
    "coca_vit_l14": _coca(_L14),
}
