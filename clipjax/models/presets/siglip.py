"""SigLIP (2303.15343) and SigLIP 2 (2502.14786): MAP head, tanh GELU, bidirectional text, last position."""

from __future__ import annotations

from dataclasses import replace

from clipjax.config import ModelConfig
from clipjax.models.towers.naflex import naflex_of
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig

# width, depth, heads, mlp_dim: big_vision models/vit.py
B = (768, 12, 12, 3072)
L = (1024, 24, 16, 4096)
SO400M = (1152, 27, 16, 4304)
G_OPT = (1536, 40, 16, 6144)
C4_EN, MC4, GEMMA = 32_000, 250_000, 256_000  # pieces of their SentencePiece vocabularies


def _siglip(
    image: tuple[int, int, int, int],
    image_size: int,
    patch_size: int = 16,
    vocab_size: int = C4_EN,
    context: int = 64,
    text: tuple[int, int, int, int] | None = None,
) -> ModelConfig:
    """big_vision models/vit.py and two_towers.py. text: its shape, if it is not the image tower's."""
    shared = dict(activation="gelu_tanh", norm_eps=1e-6, init="big_vision")
    return ModelConfig(
        image=ViTConfig(
            image_size=image_size,
            patch_size=patch_size,
            pool="map",
            pre_norm=False,
            patch_bias=True,
            projection=False,
            **_shape(image),
            **shared,
        ),
        text=TextTransformerConfig(
            vocab_size=vocab_size,
            context_length=context,
            causal=False,
            pool="last",
            projection_bias=True,
            **_shape(text or image),
            **shared,
        ),
        embed_dim=image[0],
        logit_scale_init=10.0,
        logit_scale_max=0.0,
        logit_bias_init=-10.0,
    )


def _shape(numbers: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("width", "depth", "num_heads", "mlp_dim"), numbers, strict=True))


def _naflex(model: ModelConfig) -> ModelConfig:
    return replace(model, image=naflex_of(model.image))


def _no_text_head(model: ModelConfig) -> ModelConfig:
    return replace(model, text=replace(model.text, projection="none", projection_bias=False))


SIGLIP_PRESETS: dict[str, ModelConfig] = {
    "siglip_b16": _siglip(B, 224),
    "siglip_b16_256": _siglip(B, 256),
    "siglip_b16_384": _siglip(B, 384),
    "siglip_b16_512": _siglip(B, 512),
    "siglip_b16_i18n_256": _siglip(B, 256, vocab_size=MC4),
    "siglip_l16_256": _siglip(L, 256),
    "siglip_l16_384": _siglip(L, 384),
    "siglip_so400m14_224": _siglip(SO400M, 224, 14, context=16),
    "siglip_so400m14_384": _siglip(SO400M, 384, 14),
    "siglip_so400m16_i18n_256": _no_text_head(_siglip(SO400M, 256, vocab_size=MC4)),
    "siglip2_b32_256": _siglip(B, 256, 32, GEMMA),
    "siglip2_b16_224": _siglip(B, 224, vocab_size=GEMMA),
    "siglip2_b16_256": _siglip(B, 256, vocab_size=GEMMA),
    "siglip2_b16_384": _siglip(B, 384, vocab_size=GEMMA),
    "siglip2_b16_512": _siglip(B, 512, vocab_size=GEMMA),
    "siglip2_l16_256": _siglip(L, 256, vocab_size=GEMMA),
    "siglip2_l16_384": _siglip(L, 384, vocab_size=GEMMA),
    "siglip2_l16_512": _siglip(L, 512, vocab_size=GEMMA),
    "siglip2_so400m14_224": _siglip(SO400M, 224, 14, GEMMA),
    "siglip2_so400m14_384": _siglip(SO400M, 384, 14, GEMMA),
    "siglip2_so400m16_256": _siglip(SO400M, 256, vocab_size=GEMMA),
    "siglip2_so400m16_384": _siglip(SO400M, 384, vocab_size=GEMMA),
    "siglip2_so400m16_512": _siglip(SO400M, 512, vocab_size=GEMMA),
    "siglip2_gopt16_256": _siglip(G_OPT, 256, vocab_size=GEMMA, text=SO400M),
    "siglip2_gopt16_384": _siglip(G_OPT, 384, vocab_size=GEMMA, text=SO400M),
    "siglip2_naflex_b16": _naflex(_siglip(B, 256, vocab_size=GEMMA)),
    "siglip2_naflex_so400m16": _naflex(_siglip(SO400M, 256, vocab_size=GEMMA)),
}
