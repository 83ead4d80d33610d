"""transformers' CLIPModel and MetaClip2Model, which have the same tensors.

Names and defaults from transformers models/clip/{modeling,configuration}_clip.py and models/metaclip_2/. They differ in
one rule: CLIPModel reads eos_token_id=2 as "the largest id", MetaClip2Model as 2, which is </s> in its vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipjax.config import ModelConfig, PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import hf_parts, hf_pixels, tokenizer_files
from clipjax.interop.json_fields import whole_number
from clipjax.interop.layouts import linear, patch_conv
from clipjax.interop.names import Description, Family, Meaning, Tensor, config_of, norm, weight_and_bias
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig

PIXELS = PIXEL_PRESETS["clip_hf"]
PROCESSOR = "CLIPImageProcessor"
SHARED = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, num_hidden_layers=12)
TEXT = SHARED | dict(
    hidden_size=512,
    num_attention_heads=8,
    intermediate_size=2048,
    vocab_size=49408,
    max_position_embeddings=77,
    eos_token_id=49407,
)
VISION = SHARED | dict(
    hidden_size=768, num_attention_heads=12, intermediate_size=3072, image_size=224, patch_size=32, num_channels=3
)
CLIP, METACLIP_2 = "clip", "metaclip_2"  # model_type
LARGEST_ID = 2  # in a CLIPModel: with eos_token_id=2 transformers pools at the largest id, as OpenAI's code does


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names. transformers has no logit_bias; those who train with the sigmoid loss add one."""
    vision, text = "vision_model", "text_model"
    return [
        Tensor("logit_scale", ("logit_scale",)),
        *([] if model.logit_bias_init is None else [Tensor("logit_bias", ("logit_bias",))]),
        Tensor("text/token_embedding/embedding", (f"{text}.embeddings.token_embedding.weight",)),
        Tensor("text/position_embedding", (f"{text}.embeddings.position_embedding.weight",)),
        *hf_parts.blocks("text", text),
        *norm("text/ln_final", f"{text}.final_layer_norm"),
        *weight_and_bias("text/projection", "text_projection", linear, bias=False),
        Tensor("image/cls_token", (f"{vision}.embeddings.class_embedding",)),
        *weight_and_bias(
            "image/patch_embed", f"{vision}.embeddings.patch_embedding", patch_conv(model.image.patch_size), bias=False
        ),
        Tensor("image/position_embedding", (f"{vision}.embeddings.position_embedding.weight",)),
        *norm("image/ln_pre", f"{vision}.pre_layrnorm"),  # their spelling
        *hf_parts.blocks("image", vision),
        *norm("image/ln_post", f"{vision}.post_layernorm"),
        *weight_and_bias("image/projection", "visual_projection", linear, bias=False),
    ]


def matches(description: Description) -> bool:
    """Whether config.json is a CLIPModel's or a MetaClip2Model's."""
    return description.files.get("config.json", {}).get("model_type") in (CLIP, METACLIP_2)


def read(description: Description) -> Meaning:
    """Raises InteropError for an activation or an image processor that clipjax does not support."""
    config = config_of(description, "config.json")
    vision = hf_parts.section(config, "vision_config", VISION)
    text = hf_parts.section(config, "text_config", TEXT)
    model = ModelConfig(
        image=ViTConfig(
            **hf_parts.grid(vision),
            **hf_parts.tower(vision, VISION, "config.json: vision_config"),
        ),
        text=TextTransformerConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            eos_id=_eos_id(config, text),
            **hf_parts.tower(text, TEXT, "config.json: text_config"),
        ),
        embed_dim=config.get("projection_dim", 512),
        logit_scale_init=math.exp(config.get("logit_scale_init_value", 2.6592)),
    )
    return Meaning(model, read_pixels(description, model), tokenizer_files.hf_clip(description.beside))


def _eos_id(config: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    eos = whole_number(text["eos_token_id"], "config.json: text_config.eos_token_id", least=0)
    # A text_config_dict that leaves it out replaces OpenAI's 2 by the default: the same id, in OpenAI's vocabulary.
    replaced = config.get("text_config", {}).get("eos_token_id") == LARGEST_ID and eos == text["vocab_size"] - 1
    largest = config.get("model_type") != METACLIP_2 and (eos == LARGEST_ID or replaced)
    return -1 if largest else eos


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    return hf_pixels.pixels_of(description, model, PROCESSOR, PIXELS)


def write(meaning: Meaning) -> dict[str, Any]:
    """config.json and preprocessor_config.json."""
    model, image, text = meaning.model, meaning.model.image, meaning.model.text
    # The model ignores these two ids; with eos_token_id=2 they are those of OpenAI's own upload.
    special = dict(bos_token_id=0, pad_token_id=1) if text.eos_id < 0 else {}
    # Where </s> is 2, it is not the largest id.
    kind, name = (METACLIP_2, "MetaClip2Model") if text.eos_id == LARGEST_ID else (CLIP, "CLIPModel")
    config = {
        "architectures": [name],
        "model_type": kind,
        "dtype": "float32",
        "projection_dim": model.embed_dim,
        "logit_scale_init_value": math.log(model.logit_scale_init),
        "vision_config": hf_parts.their_tower(image)
        | dict(
            model_type=f"{kind}_vision_model",
            image_size=image.image_size,
            patch_size=image.patch_size,
            projection_dim=model.embed_dim,
        ),
        "text_config": hf_parts.their_tower(text)
        | dict(
            model_type=f"{kind}_text_model",
            vocab_size=text.vocab_size,
            max_position_embeddings=text.context_length,
            projection_dim=model.embed_dim,
            eos_token_id=LARGEST_ID if text.eos_id < 0 else text.eos_id,
            **special,
        ),
    }
    return {
        "config.json": config,
        "preprocessor_config.json": hf_pixels.write_square(PROCESSOR, meaning.pixels, image.image_size),
    }


FAMILY = Family(tensors, matches, read, write=write, pixels=PIXELS, read_pixels=read_pixels, **hf_parts.OPTIONS)
