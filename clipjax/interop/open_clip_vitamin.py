"""OpenCLIP with ViTamin as the image tower. Names from open_clip timm_model.py and timm vitamin.py."""

from __future__ import annotations

from typing import Any

from clipjax.config import ModelConfig
from clipjax.interop import open_clip, open_clip_config, timm_trunks
from clipjax.interop.layouts import conv, in_proj_bias, in_proj_kernel, linear, reshape
from clipjax.interop.names import (
    Description,
    Family,
    InteropError,
    Meaning,
    Tensor,
    computed_fields,
    norm,
    weight_and_bias,
)
from clipjax.interop.open_clip_parts import text_tower
from clipjax.models.presets.timm import TIMM_PRESETS
from clipjax.models.towers.vitamin import ViTaminConfig

FIXED = dict(timm_pool="", timm_proj_bias=False, timm_drop=0.0)
# timm's name -> our image tower.
TRUNKS: dict[str, ViTaminConfig] = {
    "vitamin_small_224": TIMM_PRESETS["vitamin_s"].image,
    "vitamin_base_224": TIMM_PRESETS["vitamin_b"].image,
    "vitamin_large_224": TIMM_PRESETS["vitamin_l"].image,
    "vitamin_xlarge_256": TIMM_PRESETS["vitamin_xl_256"].image,
    "vitamin_xlarge_336": TIMM_PRESETS["vitamin_xl_336"].image,
    "vitamin_xlarge_384": TIMM_PRESETS["vitamin_xl_384"].image,
    **{f"vitamin_large_{size}": TIMM_PRESETS[f"vitamin_l_{size}"].image for size in (256, 336, 384)},
    "vitamin_large2_224": TIMM_PRESETS["vitamin_l"].image,
    **{f"vitamin_large2_{size}": TIMM_PRESETS[f"vitamin_l_{size}"].image for size in (256, 336, 384)},
}


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    image, at, theirs = model.image, "image/block_{i}", "visual.trunk"
    layer, flat = theirs + ".blocks.{i}", reshape((-1, image.width), (1, -1, image.width))
    position = Tensor("image/position_embedding", (f"{theirs}.pos_embed",), flat)
    return [
        *open_clip.scalars(model),
        *text_tower(model, "text."),
        *_convolutions(image, f"{theirs}.patch_embed.backbone"),
        *([] if image.position == "none" else [position]),
        *norm(f"{at}/ln_1", f"{layer}.norm1"),
        Tensor(f"{at}/attention/qkv/kernel", (f"{layer}.attn.qkv.weight",), in_proj_kernel),
        Tensor(f"{at}/attention/qkv/bias", (f"{layer}.attn.qkv.bias",), in_proj_bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.attn.proj", linear),
        *norm(f"{at}/ln_2", f"{layer}.norm2"),
        *norm(f"{at}/mlp/ln_first", f"{layer}.mlp.norm"),
        *weight_and_bias(f"{at}/mlp/gate", f"{layer}.mlp.w0", linear),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.mlp.w1", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.mlp.w2", linear),
        *norm("image/ln_post", f"{theirs}.fc_norm"),
        *weight_and_bias("image/projection", "visual.head.proj", linear, bias=False),
    ]


def _convolutions(image: ViTaminConfig, theirs: str) -> list[Tensor]:
    """Stem, stages and the convolution that makes the patches."""
    tensors = [
        *weight_and_bias("image/conv_1", f"{theirs}.stem.conv1", conv),
        *norm("image/ln_stem", f"{theirs}.stem.norm1"),
        *weight_and_bias("image/conv_2", f"{theirs}.stem.conv2", conv),
    ]
    channels = image.stage_widths[0]
    for stage, (width, depth) in enumerate(zip(image.stage_widths, image.stage_depths, strict=True)):
        for i in range(depth):
            ours, at = f"image/stage_{stage}_{i}", f"{theirs}.stages.{stage}.{i}"
            if channels != width:
                tensors += weight_and_bias(f"{ours}_shortcut_conv", f"{at}.shortcut.expand", conv)
            channels = width
            tensors += [
                *norm(f"{ours}_ln", f"{at}.pre_norm"),
                *weight_and_bias(f"{ours}_conv_1", f"{at}.conv1_1x1", conv),
                *weight_and_bias(f"{ours}_depthwise", f"{at}.conv2_kxk", conv),
                *weight_and_bias(f"{ours}_conv_2", f"{at}.conv3_1x1", conv),
            ]
    last = weight_and_bias("image/conv_3", f"{theirs}.pool.proj", conv)
    return [*tensors, *norm("image/ln_stages", f"{theirs}.pool.norm"), *last]


def matches(description: Description) -> bool:
    """Whether OpenCLIP's configuration names one of timm's ViTamin."""
    return timm_trunks.named(description) in TRUNKS


def read(description: Description) -> Meaning:
    """Raises InteropError for a trunk, a pool, a head or an image size that no published ViTamin has."""
    model = open_clip_config.model_cfg(description)
    vision = model["vision_cfg"]
    image = timm_trunks.known(vision, TRUNKS)
    open_clip_config.refuse_others(vision, FIXED, timm_trunks.WHERE)
    if vision.get("timm_proj", "linear") != "linear":
        raise InteropError(
            f"{timm_trunks.WHERE}.timm_proj={vision['timm_proj']!r} is not supported; expected 'linear' for a ViTamin."
        )
    image = timm_trunks.with_dropouts(image, vision)
    return open_clip.read_around(description, image, open_clip.read_text(model, model.get("text_cfg", {})))


def write(meaning: Meaning) -> dict[str, Any]:
    """Raises InteropError for a ViTamin that timm has no name for."""
    image = meaning.model.image
    names = [name for name, trunk in TRUNKS.items() if computed_fields(trunk) == computed_fields(image)]
    if not names:
        raise InteropError(f"config.model.image is not one of timm's ViTamin: {', '.join(TRUNKS)}.")
    vision = timm_trunks.write(names[0], image, timm_pool="", timm_proj="linear")
    return open_clip.write_around(meaning, vision, open_clip.write_text(meaning.model), custom_text=True)


FAMILY = Family(tensors, matches, read, write=write, image=ViTaminConfig, **open_clip.OPTIONS)
