"""open_clip_config.json: its fields, which of them are refused, and preprocess_cfg <-> config.data.pixels.

Fields and defaults from open_clip model.py (CLIP, CLIPVisionCfg, CLIPTextCfg), coca_model.py (MultimodalCfg) and
transform.py (PreprocessCfg, image_transform). open_clip itself fails at a field of a tower that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging

from clipjax.config import PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import config_files
from clipjax.interop.json_fields import refuse_unknown, square, three_numbers
from clipjax.interop.names import Description, InteropError, config_of

CONFIG = config_files.OPEN_CLIP
PIXELS = PIXEL_PRESETS["openai"]
MODES = {"shortest": "center_crop", "squash": "squash", "longest": "pad"}
# For evaluation, open_clip takes "random" as its default; the other two mean themselves.
INTERPOLATION = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}

SECTIONS = {"model_cfg", "preprocess_cfg", "license", "tags", "version"}
MODEL = {
    "cast_dtype", "custom_text", "embed_dim", "init_logit_bias", "init_logit_scale", "multimodal_cfg",
    "nonscalar_logit_scale", "output_dict", "pad_id", "quick_gelu", "text_cfg", "vision_cfg",
}  # fmt: skip
_BLOCKS = {
    "act_kwargs", "block_type", "final_ln_after_pool", "layers", "ls_init_value", "mlp_ratio", "norm_kwargs",
    "output_tokens", "pool_type", "qk_norm", "scale_attn", "scale_attn_inner", "scale_fc", "scale_heads",
    "scaled_cosine_attn", "width",
}  # fmt: skip
VISION = _BLOCKS | {
    "attentional_pool", "attn_pooler_heads", "attn_pooler_queries", "head_width", "image_size", "no_ln_pre",
    "patch_dropout", "patch_size", "pos_embed_type", "timm_drop", "timm_drop_path", "timm_model_name",
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias",
}  # fmt: skip
TEXT = _BLOCKS | {
    "context_length", "embed_cls", "eos_id", "heads", "hf_model_name", "hf_model_pretrained", "hf_pooler_type",
    "hf_proj_type", "hf_tokenizer_name", "no_causal_mask", "pad_id", "proj_bias", "proj_type", "tokenizer_kwargs",
    "tokenizer_mode", "vocab_size",
}  # fmt: skip
MULTIMODAL = TEXT | {"attn_pooler_heads", "dim_head", "n_queries"}
PREPROCESS = {"fill_color", "interpolation", "mean", "mode", "resize_mode", "size", "std"}
# Switches of older versions, which are read where they are off; and of this one, which change the tensors.
OLD = dict(global_average_pool=False, input_patchnorm=False)
FIXED = dict(cast_dtype=None)


def model_cfg(description: Description) -> Mapping[str, Any]:
    """model_cfg. Raises InteropError for a field that open_clip does not have, in it or in one of its sections."""
    config = config_of(description, CONFIG)
    refuse_unknown(config, SECTIONS, CONFIG)
    if not config.get("model_cfg"):
        raise InteropError(f"{CONFIG} has no model_cfg.")
    model = config["model_cfg"]
    refuse_unknown(model, MODEL, f"{CONFIG}: model_cfg")
    refuse_others(model, FIXED, f"{CONFIG}: model_cfg")
    for section, known in dict(vision_cfg=VISION | OLD.keys(), text_cfg=TEXT, multimodal_cfg=MULTIMODAL).items():
        if section in model:
            refuse_unknown(model[section], known, f"{CONFIG}: {section}")
    refuse_others(model.get("vision_cfg", {}), OLD, f"{CONFIG}: vision_cfg")
    return model


def refuse_others(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    """Raises InteropError where a field has another value than `fixed` says; absent, null and false are accepted."""
    for name, value in fixed.items():
        if config.get(name, value) not in (value, None, False):
            raise InteropError(f"{where}.{name}={config[name]!r} is not supported; expected {value!r}.")


def read_pixels(description: Description, image_size: int, default: PixelConfig = PIXELS) -> PixelConfig:
    """preprocess_cfg -> PixelConfig; default: where the file has none. A field that is missing or null is open_clip's.

    open_clip prepares images of the tower's size, whatever `size` says. Raises InteropError for an unknown field,
    resize mode, filter or fill.
    """
    where, config = f"{CONFIG}: preprocess_cfg", description.files.get(CONFIG, {}).get("preprocess_cfg")
    if not config:
        logging.warning("There is no preprocess_cfg in %s: images are prepared as %s says.", CONFIG, default)
        return default
    refuse_unknown(config, PREPROCESS, where)
    c = dict(mode="RGB", resize_mode="shortest", interpolation="bicubic", fill_color=0, size=image_size)
    c |= dict(mean=PIXELS.mean, std=PIXELS.std) | {name: value for name, value in config.items() if value is not None}
    for name, known in dict(mode=("RGB",), resize_mode=MODES, interpolation=INTERPOLATION).items():
        if not isinstance(c[name], str) or c[name] not in known:
            raise InteropError(f"{where}.{name}={c[name]!r} is not supported. Known: {', '.join(known)}.")
    if square(c["size"], f"{where}.size") != image_size:
        logging.warning("%s.size=%s is not used: the image tower reads %s pixels.", where, c["size"], image_size)
    std = three_numbers(c["std"] or PIXELS.std, f"{where}.std")
    if min(std) <= 0:
        raise InteropError(f"{where}.std={c['std']!r} is not supported; expected positive numbers.")
    return PixelConfig(
        resize=MODES[c["resize_mode"]],
        interpolation=INTERPOLATION[c["interpolation"]],
        fill=_grey(c["fill_color"], f"{where}.fill_color"),
        alpha=PIXELS.alpha,
        mean=three_numbers(c["mean"] or PIXELS.mean, f"{where}.mean"),
        std=std,
    )


def write_pixels(pixels: PixelConfig, size: int) -> dict[str, Any]:
    """preprocess_cfg; size: of the image, in pixels. What it cannot express is noticed when it is read back."""
    mode = {ours: theirs for theirs, ours in MODES.items()}[pixels.resize]
    shared = dict(mean=list(pixels.mean), std=list(pixels.std), interpolation=pixels.interpolation)
    return dict(size=[size, size], mode="RGB", resize_mode=mode, fill_color=pixels.fill, **shared)


def _grey(value: Any, where: str) -> int:
    levels = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(levels) != 1 or type(level := levels.pop()) is not int or not 0 <= level <= 255:
        raise InteropError(f"{where}={value!r} is not supported; expected a grey level of 0 to 255.")
    return level
