"""transformers' ChineseCLIPModel: CLIP's image tower, and a BERT that is pooled at [CLS].

Names and defaults from transformers models/chinese_clip/{modeling,configuration}_chinese_clip.py; CONTEXT from
OFA-Sys/Chinese-CLIP.
"""

from __future__ import annotations

import math
from typing import Any

from clipjax.config import ModelConfig, PixelConfig
from clipjax.interop import hf_clip, hf_parts, hf_pixels, tokenizer_files
from clipjax.interop.hf_align import TEXT
from clipjax.interop.layouts import linear
from clipjax.interop.names import Description, Family, Meaning, Tensor, config_of, weight_and_bias
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.vit import ViTConfig

PROCESSOR = "ChineseCLIPImageProcessor"
CONTEXT = 52  # tokens that a text is padded or cut to in training; no file gives it


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    text = "text_model"
    return [
        Tensor("logit_scale", ("logit_scale",)),
        *hf_parts.bert_embeddings("text", text),
        *hf_parts.bert_blocks("text", text),
        *weight_and_bias("text/projection", "text_projection", linear, bias=False),
        *(tensor for tensor in hf_clip.tensors(model) if tensor.ours.startswith("image/")),
    ]


def matches(description: Description) -> bool:
    """Whether config.json is a ChineseCLIPModel's."""
    return description.files.get("config.json", {}).get("model_type") == "chinese_clip"


def read(description: Description) -> Meaning:
    """Raises InteropError for an activation or an image processor that clipjax does not support."""
    config = config_of(description, "config.json")
    vision = hf_parts.section(config, "vision_config", hf_clip.VISION)
    text = hf_parts.section(config, "text_config", TEXT)
    model = ModelConfig(
        image=ViTConfig(
            **hf_parts.grid(vision),
            **hf_parts.tower(vision, hf_clip.VISION, "config.json: vision_config"),
        ),
        text=BertConfig(pool="cls", **hf_parts.read_bert(text, TEXT, CONTEXT)),
        embed_dim=config.get("projection_dim", 512),
        logit_scale_init=math.exp(config.get("logit_scale_init_value", 2.6592)),
    )
    return Meaning(model, read_pixels(description, model), tokenizer_files.bert(description.beside))


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    return hf_pixels.pixels_of(description, model, PROCESSOR, hf_clip.PIXELS)


def write(meaning: Meaning) -> dict[str, Any]:
    """config.json and preprocessor_config.json."""
    model, image, text = meaning.model, meaning.model.image, meaning.model.text
    config = {
        "architectures": ["ChineseCLIPModel"],
        "model_type": "chinese_clip",
        "dtype": "float32",
        "projection_dim": model.embed_dim,
        "logit_scale_init_value": math.log(model.logit_scale_init),
        "vision_config": hf_parts.their_tower(image)
        | dict(
            model_type="chinese_clip_vision_model",
            image_size=image.image_size,
            patch_size=image.patch_size,
            projection_dim=model.embed_dim,
        ),
        "text_config": hf_parts.write_bert(text, "chinese_clip_text_model"),
    }
    processor = hf_pixels.write_square(PROCESSOR, meaning.pixels, image.image_size)
    return {"config.json": config, hf_pixels.LEGACY: processor}


FAMILY = Family(
    tensors,
    matches,
    read,
    write=write,
    image=ViTConfig,
    text=BertConfig,
    pixels=hf_clip.PIXELS,
    read_pixels=read_pixels,
    **hf_parts.OPTIONS,
)
