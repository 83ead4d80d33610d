"""transformers' AlignModel: an EfficientNet and a BERT. Names and defaults from transformers models/align/.

Their temperature divides the similarities; ours is the logarithm of a factor. It is the one array that is computed and
not just moved, so a round trip may change its last bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from clipjax.config import ModelConfig, PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import hf_parts, hf_pixels, tokenizer_files
from clipjax.interop.conv_towers import efficientnet
from clipjax.interop.json_fields import square
from clipjax.interop.layouts import Layout, linear
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor, config_of, weight_and_bias
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.efficientnet import STAGES, EfficientNetConfig, block_shapes

SIZE = "config.json: vision_config.image_size"  # for messages
CONTEXT = 64  # tokens that a text is padded or cut to; no file gives it
PROCESSOR = "EfficientNetImageProcessor"
# Settings that our EfficientNet has built in.
FIXED = dict(
    depth_divisor=8,
    num_block_repeats=[s[0] for s in STAGES],
    kernel_sizes=[s[1] for s in STAGES],
    strides=[s[2] for s in STAGES],
    expand_ratios=[s[3] for s in STAGES],
    in_channels=[s[4] for s in STAGES],
    out_channels=[s[5] for s in STAGES],
    squeeze_expansion_ratio=0.25,
    hidden_act="swish",
    pooling_type="mean",
    num_channels=3,
)
VISION = dict(
    image_size=600,
    width_coefficient=2.0,
    depth_coefficient=3.1,
    depthwise_padding=[],
    batch_norm_eps=1e-3,
    batch_norm_momentum=0.99,
    drop_connect_rate=0.2,
)
TEXT = dict(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    pad_token_id=0,
)
_temperature = Layout(
    lambda theirs: np.float32(-np.log(np.float64(theirs[0]))),
    lambda ours: [np.asarray(np.exp(-np.float64(ours)), np.float32)],
)


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    text = "text_model"
    return [
        Tensor("logit_scale", ("temperature",), _temperature),
        *hf_parts.bert_embeddings("text", text),
        *hf_parts.bert_blocks("text", text),
        *weight_and_bias("text/pooler", f"{text}.pooler.dense", linear),
        *weight_and_bias("text/projection", "text_projection", linear),
        *efficientnet(model),
    ]


def matches(description: Description) -> bool:
    """Whether config.json is an AlignModel's."""
    return description.files.get("config.json", {}).get("model_type") == "align"


def read(description: Description) -> Meaning:
    """Raises InteropError for another EfficientNet than the published one, or another way to prepare images."""
    config = config_of(description, "config.json")
    vision, text = VISION | FIXED | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    for name, value in FIXED.items():
        if vision[name] != value:
            raise InteropError(f"config.json: vision_config.{name}={vision[name]} is not supported; expected {value}.")
    processor = hf_pixels.read_processor(description, PROCESSOR)
    image = EfficientNetConfig(
        # align-base's config.json says 600, and its processor makes images of 289
        image_size=hf_pixels.output_side(processor) if processor else square(vision["image_size"], SIZE),
        width_coefficient=float(vision["width_coefficient"]),
        depth_coefficient=float(vision["depth_coefficient"]),
        depthwise_padding=tuple(vision["depthwise_padding"]),
        norm_eps=vision["batch_norm_eps"],
        norm_momentum=vision["batch_norm_momentum"],
        drop_path=float(vision["drop_connect_rate"]),
        projection=False,
    )
    width = block_shapes(image)[-1].outputs
    embed_dim = config.get("projection_dim", 640)
    if width != embed_dim:
        raise InteropError(
            f"config.json: projection_dim={embed_dim}; the image tower has {width} channels "
            "and no projection. Both must be equal."
        )
    model = ModelConfig(
        image=replace(image, width=width),
        text=BertConfig(pool="cls", pooler=True, projection_bias=True, **hf_parts.read_bert(text, TEXT, CONTEXT)),
        embed_dim=embed_dim,
        logit_scale_init=1 / config.get("temperature_init_value", 1.0),
        logit_scale_max=0.0,
    )
    tokenizer = tokenizer_files.tokenizer_json(description.beside)
    return Meaning(model, read_pixels(description, model), tokenizer)


def read_pixels(description: Description, model: ModelConfig) -> PixelConfig:
    """How images are prepared for the model."""
    pixels = hf_pixels.pixels_of(description, model, PROCESSOR, PIXEL_PRESETS["align"])
    # Without a processor these are align-base's, and the model may read larger images.
    return pixels if pixels.scale_to >= model.image.image_size else replace(pixels, scale_to=0)


def write(meaning: Meaning) -> dict[str, Any]:
    """config.json and preprocessor_config.json."""
    model, image, text = meaning.model, meaning.model.image, meaning.model.text
    side = image.image_size
    return {
        "config.json": {
            "architectures": ["AlignModel"],
            "model_type": "align",
            "dtype": "float32",
            "projection_dim": model.embed_dim,
            "temperature_init_value": 1 / model.logit_scale_init,
            "vision_config": FIXED
            | dict(
                model_type="align_vision_model",
                image_size=side,
                width_coefficient=image.width_coefficient,
                depth_coefficient=image.depth_coefficient,
                depthwise_padding=list(image.depthwise_padding),
                batch_norm_eps=image.norm_eps,
                batch_norm_momentum=image.norm_momentum,
                drop_connect_rate=image.drop_path,
                hidden_dim=image.width,
            ),
            "text_config": hf_parts.write_bert(text, "align_text_model"),
        },
        # No further normalisation of what is normalised already.
        hf_pixels.LEGACY: hf_pixels.write_square(PROCESSOR, meaning.pixels, side)
        | dict(rescale_offset=False, include_top=False),
    }


FAMILY = Family(
    tensors,
    matches,
    read,
    write=write,
    image=EfficientNetConfig,
    text=BertConfig,
    pixels=PIXEL_PRESETS["align"],
    read_pixels=read_pixels,
    **hf_parts.OPTIONS,
)
