"""OpenCLIP's own ViT and text towers, and OpenAI's, which have the same names and no configuration.

From open_clip model.py (CLIPVisionCfg, CLIPTextCfg, build_model_from_openai_state_dict) and transformer.py, and from
openai/CLIP clip/model.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from clipjax.config import ImageTowerConfig, ModelConfig, PixelConfig, TextTowerConfig
from clipjax.data.pixel_presets import PIXEL_PRESETS
from clipjax.interop import tokenizer_files
from clipjax.interop.described import Description, Meaning, config_of
from clipjax.interop.layouts import in_proj_bias, in_proj_kernel, linear, patch_conv
from clipjax.interop.names import InteropError, Tensor, norm, weight_and_bias

CONFIG = "open_clip_config.json"
PIXELS = PIXEL_PRESETS["openai"]
MODES = {"shortest": "center_crop", "squash": "squash", "longest": "pad"}
IGNORED = r"input_resolution|context_length|vocab_size|.*attn_mask"
# The prefix under which models with "custom_text" keep what is the text tower's.
CUSTOM_TEXT = re.compile(r"text\.(?=(transformer|token_embedding|positional_embedding|ln_final|text_projection)\b)")
VISION = dict(image_size=224, patch_size=16, width=768, layers=12, head_width=64, mlp_ratio=4.0)
TEXT = dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12, mlp_ratio=4.0)
# Fields that must have this value, or be absent: what else they could say is for other families, or not computed.
VISION_FIXED = dict(
    ls_init_value=None, attentional_pool=False, no_ln_pre=False, pos_embed_type="learnable", final_ln_after_pool=False,
    pool_type="tok", block_type=None, qk_norm=False, scaled_cosine_attn=False, scale_heads=False,
    scale_attn_inner=False, scale_attn=False, scale_fc=False, timm_model_name=None,
)  # fmt: skip
TEXT_FIXED = dict(
    ls_init_value=None, embed_cls=False, final_ln_after_pool=False, proj_type="linear", block_type=None, qk_norm=False,
    scaled_cosine_attn=False, scale_heads=False, scale_attn_inner=False, scale_attn=False, scale_fc=False,
    hf_model_name=None,
)  # fmt: skip


def blocks(ours: str, theirs: str) -> list[Tensor]:
    """Residual attention blocks; theirs such as "visual.transformer"."""
    at, layer = f"{ours}/block_{{i}}", f"{theirs}.resblocks.{{i}}"
    return [
        *norm(f"{at}/ln_1", f"{layer}.ln_1"),
        Tensor(f"{at}/attention/qkv/kernel", (f"{layer}.attn.in_proj_weight",), in_proj_kernel),
        Tensor(f"{at}/attention/qkv/bias", (f"{layer}.attn.in_proj_bias",), in_proj_bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.attn.out_proj", linear),
        *norm(f"{at}/ln_2", f"{layer}.ln_2"),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.mlp.c_fc", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.mlp.c_proj", linear),
    ]


def text_tensors(model: ModelConfig, prefix: str = "") -> list[Tensor]:
    """prefix: "text." for models with custom_text."""
    projection = f"{prefix}text_projection"
    return [
        Tensor("text/position_embedding", (f"{prefix}positional_embedding",)),
        Tensor("text/token_embedding/embedding", (f"{prefix}token_embedding.weight",)),
        *blocks("text", f"{prefix}transformer"),
        *norm("text/ln_final", f"{prefix}ln_final"),
        # A matrix used as x @ m, not a linear layer, where there is no bias.
        *(
            weight_and_bias("text/projection", projection, linear)
            if model.text.projection_bias
            else [Tensor("text/projection/kernel", (projection,))]
        ),
    ]


def scalars(model: ModelConfig) -> list[Tensor]:
    names = ["logit_scale"] + ["logit_bias"] * (model.logit_bias_init is not None)
    return [Tensor(name, (name,)) for name in names]


def tensors(model: ModelConfig) -> list[Tensor]:
    return [
        *scalars(model),
        *text_tensors(model),
        Tensor("image/cls_token", ("visual.class_embedding",)),
        Tensor("image/position_embedding", ("visual.positional_embedding",)),
        Tensor("image/projection/kernel", ("visual.proj",)),
        Tensor("image/patch_embed/kernel", ("visual.conv1.weight",), patch_conv(model.image.patch_size)),
        *norm("image/ln_pre", "visual.ln_pre"),
        *blocks("image", "visual.transformer"),
        *norm("image/ln_post", "visual.ln_post"),
    ]


def renamed(name: str) -> str:
    return CUSTOM_TEXT.sub("", name)


def matches(description: Description) -> bool:
    vision = description.files.get(CONFIG, {}).get("model_cfg", {}).get("vision_cfg", {})
    return (
        isinstance(vision.get("layers", 12), int)
        and not any(vision.get(key) for key in ("timm_model_name", "attentional_pool"))
        and "visual.class_embedding" in description.shapes
        and CONFIG in description.files
    )


def read(description: Description) -> Meaning:
    config = config_of(description, CONFIG)
    model = config["model_cfg"]
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    refuse_others(vision, VISION_FIXED, f"{CONFIG}: vision_cfg")
    refuse_others(text, TEXT_FIXED, f"{CONFIG}: text_cfg")
    v = VISION | vision
    bias = model.get("init_logit_bias")
    return Meaning(
        ModelConfig(
            image=ImageTowerConfig(
                image_size=v["image_size"],
                patch_size=v["patch_size"],
                width=v["width"],
                depth=v["layers"],
                num_heads=v["width"] // v["head_width"],
                mlp_dim=int(v["width"] * v["mlp_ratio"]),
                activation=activation(model, v),
                norm_eps=(v.get("norm_kwargs") or {}).get("eps", 1e-5),
            ),
            text=read_text(model, text),
            embed_dim=model["embed_dim"],
            logit_scale_init=math.exp(model.get("init_logit_scale", math.log(1 / 0.07))),
            logit_bias_init=None if bias is None else float(bias),
        ),
        read_pixels(config.get("preprocess_cfg", {})),
        tokenizer_files.openai(description.beside),
    )


def read_text(model: Mapping[str, Any], text: Mapping[str, Any]) -> TextTowerConfig:
    """The text tower of model_cfg; text: its text_cfg. Raises InteropError for a pooling that is not ours."""
    t = TEXT | text
    pool = t.get("pool_type", "argmax")
    if pool not in ("argmax", "eos", "last"):
        raise InteropError(f"{CONFIG}: text_cfg.pool_type='{pool}' is not one of argmax, eos, last.")
    return TextTowerConfig(
        vocab_size=t["vocab_size"],
        context_length=t["context_length"],
        width=t["width"],
        depth=t["layers"],
        num_heads=t["heads"],
        mlp_dim=int(t["width"] * t["mlp_ratio"]),
        causal=not t.get("no_causal_mask", False),
        pool="last" if pool == "last" else "eos",
        eos_id=t.get("eos_id", 2) if pool == "eos" else -1,
        projection_bias=t.get("proj_bias", False),
        activation=activation(model, t),
        norm_eps=(t.get("norm_kwargs") or {}).get("eps", 1e-5),
    )


def write(meaning: Meaning) -> dict[str, Any]:
    model, image = meaning.model, meaning.model.image
    vision = dict(
        image_size=image.image_size,
        patch_size=image.patch_size,
        width=image.width,
        layers=image.depth,
        head_width=image.width // image.num_heads,
        mlp_ratio=ratio(image),
        **kwargs(image),
    )
    config = dict(
        embed_dim=model.embed_dim,
        quick_gelu=image.activation == "quick_gelu",
        init_logit_scale=math.log(model.logit_scale_init),
        vision_cfg=vision,
        text_cfg=write_text(meaning.model),
    )
    if model.logit_bias_init is not None:
        config["init_logit_bias"] = model.logit_bias_init
    return {CONFIG: {"model_cfg": config, "preprocess_cfg": write_pixels(meaning.pixels, image.image_size)}}


def write_text(model: ModelConfig) -> dict[str, Any]:
    text = model.text
    pool = {"eos": "argmax" if text.eos_id < 0 else "eos"}.get(text.pool, text.pool)
    return dict(
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        width=text.width,
        heads=text.num_heads,
        layers=text.depth,
        mlp_ratio=ratio(text),
        no_causal_mask=not text.causal,
        pool_type=pool,
        **({"eos_id": text.eos_id} if pool == "eos" else {}),
        proj_bias=text.projection_bias,
        **kwargs(text),
    )


def read_pixels(config: Mapping[str, Any]) -> PixelConfig:
    """preprocess_cfg as ours. Raises InteropError for a resize that is not ours."""
    mode, interpolation = config.get("resize_mode", "shortest"), config.get("interpolation", "bicubic")
    if mode not in MODES or interpolation not in ("bicubic", "bilinear"):
        raise InteropError(
            f"{CONFIG}: preprocess_cfg has resize_mode='{mode}', interpolation='{interpolation}'; "
            f"known: {', '.join(MODES)}, bicubic or bilinear."
        )
    return PixelConfig(
        resize=MODES[mode],
        interpolation=interpolation,
        fill=config.get("fill_color", 0),
        alpha=PIXELS.alpha,
        mean=tuple(map(float, config.get("mean", PIXELS.mean))),
        std=tuple(map(float, config.get("std", PIXELS.std))),
    )


def write_pixels(pixels: PixelConfig, size: int) -> dict[str, Any]:
    mode = {ours: theirs for theirs, ours in MODES.items()}[pixels.resize]
    shared = dict(mean=list(pixels.mean), std=list(pixels.std), interpolation=pixels.interpolation)
    return dict(size=[size, size], mode="RGB", resize_mode=mode, fill_color=pixels.fill, **shared)


def activation(model: Mapping[str, Any], tower: Mapping[str, Any]) -> str:
    if model.get("quick_gelu", False):
        return "quick_gelu"
    return "gelu_tanh" if (tower.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def kwargs(tower: Any) -> dict[str, Any]:
    """act_kwargs and norm_kwargs where they differ from open_clip's defaults."""
    result = {"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {}
    return result | ({"norm_kwargs": {"eps": tower.norm_eps}} if tower.norm_eps != 1e-5 else {})


def ratio(tower: Any) -> float:
    """mlp_ratio, of which open_clip takes int(width * ratio): exactly mlp_dim."""
    result = tower.mlp_dim / tower.width
    return result if int(tower.width * result) == tower.mlp_dim else math.nextafter(result, math.inf)


def refuse_others(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    """Raises InteropError where a field says what this family does not compute."""
    for name, value in fixed.items():
        if config.get(name, value) not in (value, None, False):
            raise InteropError(f"{where}.{name}={config[name]!r} is not computed by this family.")


def matches_openai(description: Description) -> bool:
    """OpenAI's archives carry three numbers that nobody else's state dicts have."""
    marks = ("input_resolution", "context_length", "vocab_size", "visual.class_embedding")
    return all(name in description.shapes for name in marks)


def read_openai(description: Description) -> Meaning:
    """Sizes from the tensors; QuickGELU, heads of 64 and the largest id are OpenAI's."""
    shapes = {renamed(name): shape for name, shape in description.shapes.items()}
    try:
        (image_width, _, patch, _), (positions, _) = (
            shapes["visual.conv1.weight"],
            shapes["visual.positional_embedding"],
        )
        (context, width), (_, embed_dim) = shapes["positional_embedding"], shapes["text_projection"]
        vocab = shapes["token_embedding.weight"][0]
    except (KeyError, ValueError) as error:
        raise InteropError(f"This is no CLIP of OpenAI's with a ViT: {error} is missing or misshapen.") from error
    count = lambda prefix: sum(name.startswith(prefix) and name.endswith("ln_1.weight") for name in shapes)  # noqa: E731
    return Meaning(
        ModelConfig(
            image=ImageTowerConfig(
                image_size=patch * math.isqrt(positions - 1),
                patch_size=patch,
                width=image_width,
                depth=count("visual.transformer."),
                num_heads=image_width // 64,
                mlp_dim=4 * image_width,
                activation="quick_gelu",
            ),
            text=TextTowerConfig(
                vocab_size=vocab,
                context_length=context,
                width=width,
                depth=count("transformer."),
                num_heads=width // 64,
                mlp_dim=4 * width,
                activation="quick_gelu",
            ),
            embed_dim=embed_dim,
        ),
        PIXELS,
        tokenizer_files.openai(description.beside),
    )
