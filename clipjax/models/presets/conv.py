"""Published models with convolutional image towers: CLIP's ResNets, OpenCLIP's ConvNeXts, ALIGN."""

from __future__ import annotations

from clipjax.config import ModelConfig
from clipjax.models.presets.shared import clip_text
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.convnext import ConvNeXtConfig
from clipjax.models.towers.efficientnet import COEFFICIENTS, EfficientNetConfig
from clipjax.models.towers.resnet import ResNetConfig


def _resnet(image_size: int, stages: tuple[int, ...], width: int, text_width: int, embed_dim: int) -> ModelConfig:
    """openai/CLIP clip/model.py: heads of 64 in the attention pool too, QuickGELU in the text tower."""
    image = ResNetConfig(
        image_size=image_size,
        stages=stages,
        width=width,
        num_heads=32 * width // 64,
    )
    return ModelConfig(image=image, text=clip_text(text_width, 12, "quick_gelu"), embed_dim=embed_dim)


def _convnext(
    image_size: int,
    stages: tuple[int, ...],
    width: int,
    embed_dim: int,
    text_depth: int = 12,
    head: str = "linear",
    norm_eps: float = 1e-6,
) -> ModelConfig:
    """open_clip model_configs/convnext_*.json over timm's trunks; the text tower is as wide as the embedding."""
    image = ConvNeXtConfig(
        image_size=image_size,
        stages=stages,
        width=width,
        head=head,
        norm_eps=norm_eps,
        drop_path=0.1,
    )
    return ModelConfig(image=image, text=clip_text(embed_dim, text_depth), embed_dim=embed_dim)


def _align() -> ModelConfig:
    """transformers' align-base: EfficientNet-B7 without a projection, BERT-base; the scale starts at 1."""
    width_coefficient, depth_coefficient = COEFFICIENTS["b7"]
    image = EfficientNetConfig(
        image_size=289,
        width_coefficient=width_coefficient,
        depth_coefficient=depth_coefficient,
        width=640,
        norm_eps=1e-3,
        norm_momentum=0.99,
        drop_path=0.2,
        projection=False,
    )
    text = BertConfig(
        vocab_size=30522,
        context_length=64,
        num_positions=512,
        width=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        pool="cls",
        pooler=True,
        pad_id=0,
        projection_bias=True,
        norm_eps=1e-12,
        dropout=0.1,
    )
    return ModelConfig(image=image, text=text, embed_dim=640, logit_scale_init=1.0, logit_scale_max=0.0)


_STAGES = (3, 3, 27, 3)

CONV_PRESETS: dict[str, ModelConfig] = {
    "clip_rn50": _resnet(224, (3, 4, 6, 3), 64, 512, 1024),
    "clip_rn101": _resnet(224, (3, 4, 23, 3), 64, 512, 512),
    "clip_rn50x4": _resnet(288, (4, 6, 10, 6), 80, 640, 640),
    "clip_rn50x16": _resnet(384, (6, 8, 18, 8), 96, 768, 768),
    "clip_rn50x64": _resnet(448, (3, 15, 36, 10), 128, 1024, 1024),
    "open_clip_convnext_base": _convnext(224, _STAGES, 128, 512),
    "open_clip_convnext_base_w": _convnext(256, _STAGES, 128, 640),
    "open_clip_convnext_base_w_320": _convnext(320, _STAGES, 128, 640),
    "open_clip_convnext_large_d": _convnext(256, _STAGES, 192, 768, 16, "mlp"),
    "open_clip_convnext_large_d_320": _convnext(320, _STAGES, 192, 768, 16, "mlp"),
    "open_clip_convnext_xxlarge": _convnext(256, (3, 4, 30, 3), 384, 1024, 24, norm_eps=1e-5),
    "align_base": _align(),
}
