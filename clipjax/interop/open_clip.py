"""OpenCLIP's own ViT and text tower. Configuration from open_clip model.py (CLIPVisionCfg, CLIPTextCfg)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from clipjax.config import ImageTowerConfig, ModelConfig, PixelConfig, TextTowerConfig
from clipjax.interop import tokenizer_files
from clipjax.interop.json_fields import square
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor
from clipjax.interop.open_clip_config import CONFIG, PIXELS, model_cfg, read_pixels, refuse_others, write_pixels
from clipjax.interop.open_clip_parts import image_tower, text_tower
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig

IGNORED = r"input_resolution|context_length|vocab_size|.*attn_mask"
# What the families of this format share.
OPTIONS = dict(
    format="open_clip",
    ignored=IGNORED,
    weights="open_clip_model.safetensors",
    pixels=PIXELS,
    read_pixels=lambda description, model: read_pixels(description, model.image.image_size),
)
# Models with "custom_text" have this prefix on the text tower's names.
CUSTOM_TEXT = re.compile(r"text\.(?=(transformer|token_embedding|positional_embedding|ln_final|text_projection)\b)")
VISION = dict(image_size=224, patch_size=16, width=768, layers=12, head_width=64, mlp_ratio=4.0)
TEXT = dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12, mlp_ratio=4.0)
# Fields that must be absent or have this value. Others belong to another family, or are not computed.
FIXED = dict(block_type="custom", qk_norm=False, scaled_cosine_attn=False, scale_heads=False, scale_attn=False)
VISION_FIXED = FIXED | dict(pos_embed_type="learnable", timm_model_name=None)
TEXT_FIXED = FIXED | dict(embed_cls=False, final_ln_after_pool=False, hf_model_name=None)


def scalars(model: ModelConfig) -> list[Tensor]:
    """logit_scale, and logit_bias where the model has one."""
    names = ["logit_scale"] + ["logit_bias"] * (model.logit_bias_init is not None)
    return [Tensor(name, (name,)) for name in names]


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    return [*scalars(model), *text_tower(model, ""), *image_tower(model)]


def renamed(name: str) -> str:
    """A name in a file, without the prefix of "custom_text"."""
    return CUSTOM_TEXT.sub("", name)


def prefixed(name: str) -> str:
    """A name in a file, with the prefix of "custom_text", which a text tower of OpenCLIP's CLIP class lacks."""
    return f"text.{name}" if CUSTOM_TEXT.match(f"text.{name}") else name


def matches(description: Description) -> bool:
    """Whether both towers are OpenCLIP's own transformers."""
    model = description.files.get(CONFIG, {}).get("model_cfg", {})
    vision = model.get("vision_cfg", {})
    return (
        isinstance(vision.get("layers", 12), int)
        and not vision.get("timm_model_name")
        and not model.get("text_cfg", {}).get("hf_model_name")
        and "multimodal_cfg" not in model
        and "visual.class_embedding" in description.shapes
        and CONFIG in description.files
    )


def read(description: Description) -> Meaning:
    """Raises InteropError for an option that clipjax does not support."""
    model = model_cfg(description)
    return read_around(description, read_image(model), read_text(model, model.get("text_cfg", {})))


def read_around(
    description: Description,
    image: ImageTowerConfig,
    text: TextTowerConfig,
    pixels: PixelConfig = PIXELS,
    **options: Any,
) -> Meaning:
    """The Meaning of a directory whose towers have been read.

    pixels: where the file does not say how images are prepared. options: further fields of ModelConfig.
    """
    model = model_cfg(description)
    bias = model.get("init_logit_bias")
    return Meaning(
        ModelConfig(
            image=image,
            text=text,
            embed_dim=model["embed_dim"],
            logit_scale_init=math.exp(model.get("init_logit_scale", math.log(1 / 0.07))),
            logit_bias_init=None if bias is None else float(bias),
            **options,
        ),
        read_pixels(description, image.image_size, pixels),
        tokenizer_files.open_clip(model.get("text_cfg", {}), description.beside),
    )


def read_image(model: Mapping[str, Any]) -> ViTConfig:
    """The ViT of model_cfg. Raises InteropError for an option that clipjax does not support."""
    v = VISION | model.get("vision_cfg", {})
    refuse_others(v, VISION_FIXED, f"{CONFIG}: vision_cfg")
    pool, by_attention = v.get("pool_type", "tok"), v.get("attentional_pool", False)
    if by_attention not in (False, True) or (by_attention and pool != "tok"):
        raise InteropError(
            f"{CONFIG}: vision_cfg.attentional_pool={by_attention!r} with pool_type='{pool}' is not supported. "
            "Known: true with pool_type 'tok'."
        )
    if pool not in ("tok", "avg"):
        raise InteropError(f"{CONFIG}: vision_cfg.pool_type='{pool}' is not supported. Known: tok, avg.")
    shared = read_blocks(model, v, "vision_cfg")
    if by_attention:
        if shared["norm_eps"] != 1e-5:  # open_clip's pooler always has 1e-5
            raise InteropError(f"{CONFIG}: vision_cfg.norm_kwargs is not supported together with attentional_pool.")
        queries, heads = v.get("attn_pooler_queries", 256), v.get("attn_pooler_heads", 8)
        shared |= dict(pool="attentional", pooler_queries=queries, pooler_heads=heads)
    else:
        after = v.get("final_ln_after_pool", False)
        shared |= dict(pool={"tok": "cls", "avg": "gap"}[pool], norm_after_pool=after)
    return ViTConfig(
        image_size=square(v["image_size"], f"{CONFIG}: vision_cfg.image_size"),
        patch_size=square(v["patch_size"], f"{CONFIG}: vision_cfg.patch_size"),
        num_heads=v["width"] // v["head_width"],
        class_token=by_attention or pool == "avg",
        pre_norm=not v.get("no_ln_pre", False),
        patch_dropout=v.get("patch_dropout", 0.0),
        **shared,
    )


def read_blocks(model: Mapping[str, Any], tower: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that image and text towers share. Raises InteropError for an unknown option; where: for messages."""
    for name, known in (("act_kwargs", "approximate"), ("norm_kwargs", "eps")):
        if others := set(tower.get(name) or {}) - {known}:
            raise InteropError(f"{CONFIG}: {where}.{name} has {', '.join(sorted(others))}. Known: {known}.")
    approximate = (tower.get("act_kwargs") or {}).get("approximate", "none")
    if approximate not in ("none", "tanh") or (approximate == "tanh" and model.get("quick_gelu", False)):
        raise InteropError(
            f"{CONFIG}: {where}.act_kwargs={tower['act_kwargs']!r} is not supported. Known: approximate 'none', and "
            "'tanh' without quick_gelu."
        )
    return dict(
        width=tower["width"],
        depth=tower["layers"],
        mlp_dim=int(tower["width"] * tower["mlp_ratio"]),
        activation=activation(model, tower),
        norm_eps=(tower.get("norm_kwargs") or {}).get("eps", 1e-5),
        layer_scale=tower.get("ls_init_value") or 0.0,
        attention_norm=tower.get("scale_attn_inner", False),
        mlp_norm=tower.get("scale_fc", False),
    )


def read_text(
    model: Mapping[str, Any], text: Mapping[str, Any], fixed: Mapping[str, Any] = TEXT_FIXED
) -> TextTransformerConfig:
    """The text tower. text: text_cfg; fixed: values that it must have. Raises InteropError for other options."""
    refuse_others(text, fixed, f"{CONFIG}: text_cfg")
    t = TEXT | text
    pool, projection = t.get("pool_type", "argmax"), t.get("proj_type", "linear")
    if pool not in ("argmax", "eos", "last"):
        raise InteropError(f"{CONFIG}: text_cfg.pool_type='{pool}' is not supported. Known: argmax, eos, last.")
    if projection not in ("linear", "none"):
        raise InteropError(f"{CONFIG}: text_cfg.proj_type='{projection}' is not supported. Known: linear, none.")
    ours = "last" if pool == "last" else "eos"
    if t.get("embed_cls", False):  # open_clip then ignores pool_type
        ours = pool = "cls"
    return TextTransformerConfig(
        vocab_size=t["vocab_size"],
        context_length=t["context_length"],
        num_heads=t["heads"],
        causal=not t.get("no_causal_mask", False),
        pool=ours,
        eos_id=t.get("eos_id", 2) if pool == "eos" else -1,
        pad_id=t.get("pad_id", 0),
        projection=projection,
        projection_bias=projection == "linear" and t.get("proj_bias", False),
        **read_blocks(model, t, "text_cfg"),
    )


def write(meaning: Meaning) -> dict[str, Any]:
    """open_clip_config.json."""
    return write_around(meaning, write_image(meaning.model.image), write_text(meaning.model))


def write_around(meaning: Meaning, vision: Mapping[str, Any], text: dict[str, Any], **others: Any) -> dict[str, Any]:
    """open_clip_config.json with vision_cfg and text_cfg as given; others: further fields of model_cfg."""
    model = meaning.model
    config = dict(
        embed_dim=model.embed_dim,
        quick_gelu=model.text.activation == "quick_gelu",
        init_logit_scale=math.log(model.logit_scale_init),
        vision_cfg=vision,
        text_cfg=tokenizer_files.write_open_clip(meaning.tokenizer) | text,
    )
    if model.logit_bias_init is not None:
        config["init_logit_bias"] = model.logit_bias_init
    preprocess = write_pixels(meaning.pixels, model.image.image_size)
    return {CONFIG: {"model_cfg": config | others, "preprocess_cfg": preprocess}}


def write_image(image: ViTConfig) -> dict[str, Any]:
    """vision_cfg of a ViT."""
    pool = {}
    if image.pool == "attentional":
        queries, heads = image.pooler_queries, image.pooler_heads
        pool = dict(attentional_pool=True, attn_pooler_queries=queries, attn_pooler_heads=heads)
    elif image.pool == "gap":
        pool = dict(pool_type="avg")
    options = dict(
        no_ln_pre=not image.pre_norm, final_ln_after_pool=image.norm_after_pool, patch_dropout=image.patch_dropout
    )
    return dict(
        image_size=image.image_size,
        patch_size=image.patch_size,
        width=image.width,
        layers=image.depth,
        head_width=image.width // image.num_heads,
        mlp_ratio=ratio(image),
        **pool,
        **{name: value for name, value in options.items() if value},
        **kwargs(image),
    )


def write_text(model: ModelConfig) -> dict[str, Any]:
    """text_cfg of OpenCLIP's own text tower."""
    text = model.text
    pool = {"eos": "argmax" if text.eos_id < 0 else "eos", "cls": "argmax"}.get(text.pool, text.pool)
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
        **({"embed_cls": True} if text.pool == "cls" else {}),
        **({"pad_id": text.pad_id} if text.pad_id else {}),
        **({"proj_type": "none"} if text.projection == "none" else {}),
        proj_bias=text.projection_bias,
        **kwargs(text),
    )


def activation(model: Mapping[str, Any], tower: Mapping[str, Any]) -> str:
    """model_cfg and vision_cfg or text_cfg -> our name of the activation."""
    if model.get("quick_gelu", False):
        return "quick_gelu"
    return "gelu_tanh" if (tower.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def kwargs(tower: Any) -> dict[str, Any]:
    """The block options that differ from open_clip's defaults."""
    result = {"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {}
    result |= {"norm_kwargs": {"eps": tower.norm_eps}} if tower.norm_eps != 1e-5 else {}
    result |= {"ls_init_value": tower.layer_scale} if tower.layer_scale else {}
    result |= {"scale_attn_inner": True} if tower.attention_norm else {}
    return result | ({"scale_fc": True} if tower.mlp_norm else {})


def ratio(tower: Any) -> float:
    """mlp_ratio such that open_clip's int(width * mlp_ratio) is exactly mlp_dim."""
    result = tower.mlp_dim / tower.width
    return result if int(tower.width * result) == tower.mlp_dim else math.nextafter(result, math.inf)


FAMILY = Family(tensors, matches, read, write=write, renamed=renamed, **OPTIONS)
