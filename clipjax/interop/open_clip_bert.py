"""OpenCLIP's models with a text tower from transformers (BERT, RoBERTa, XLM-R). Names from open_clip hf_model.py.

open_clip_config.json names the text tower on the Hugging Face hub and gives no sizes: those are read from the tensors.
The rules of padding, positions and LayerNorm follow from the text tower's own config.json where it is there, and else
from the name or the tensors: see clipjax.interop.bert_rules. To build such a model, open_clip asks the hub, or its
cache, for the configuration of that name. The image tower is OpenCLIP's own ViT, or one of timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipjax.config import ModelConfig, PixelConfig
from clipjax.interop import bert_rules, hf_parts, open_clip, open_clip_config, open_clip_siglip, open_clip_timm
from clipjax.interop.config_files import timm_name
from clipjax.interop.layouts import linear
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
from clipjax.interop.open_clip_parts import image_tower
from clipjax.models.presets.bert import BERT_TOWERS
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.vit import ViTConfig

IGNORED = rf"{open_clip.IGNORED}|.*\.(position|token_type)_ids"
# hf_pooler_type -> ours. Only the first keeps BERT's pooler in the model.
POOLERS = {"cls_pooler": "pooler", "cls_last_hidden_state_pooler": "cls", "mean_pooler": "mean"}
PROJECTIONS = {"mlp": "mlp", "linear": "linear", None: "none"}
# What text_cfg says beside the name on the hub; all other fields follow from the name.
CONFIGURED = ("context_length", "pool", "pooler", "projection", "projection_bias")


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    image = open_clip_timm.trunk(model) if _of_timm(model.image) else image_tower(model)
    return [*open_clip.scalars(model), *text_tensors(model), *image]


def matches(description: Description) -> bool:
    """Whether the text tower is named on the hub."""
    model = description.files.get(open_clip.CONFIG, {}).get("model_cfg", {})
    return bool(model.get("text_cfg", {}).get("hf_model_name")) and "multimodal_cfg" not in model


def read(description: Description) -> Meaning:
    """Raises InteropError for a text model, pooler, projection or image tower that clipjax does not support."""
    model = open_clip_config.model_cfg(description)
    text = read_text(model["text_cfg"], description.shapes, description.files)
    image, pixels = _read_image(model)
    # SigLIP's temperature has no upper bound, and OpenCLIP bounds none itself.
    bound = dict(logit_scale_max=0.0) if image.pool == "map" else {}
    return open_clip.read_around(description, image, text, pixels, **bound)


def _read_image(model: Mapping[str, Any]) -> tuple[ViTConfig, PixelConfig]:
    vision = model.get("vision_cfg", {})
    name = timm_name(vision)
    if open_clip_siglip.is_siglip(vision):
        return open_clip_siglip.read_image(model), open_clip_siglip.PIXELS
    if name in open_clip_timm.TRUNKS:
        image, pixels = open_clip_timm.read_image(model)
        if _of_timm(image):
            return image, pixels
    if name or isinstance(vision.get("layers"), list):
        found = f"timm_model_name={vision['timm_model_name']!r}" if name else f"layers={vision['layers']!r} (a ResNet)"
        text = model["text_cfg"]["hf_model_name"]
        raise InteropError(
            f"{open_clip.CONFIG}: vision_cfg has {found}, which is not supported with text_cfg.hf_model_name={text!r}."
        )
    return open_clip.read_image(model), open_clip.PIXELS


def _of_timm(image: ViTConfig) -> bool:
    """Whether these are settings of timm's ViTs, none of which OpenCLIP's own has."""
    return image.patch_bias or image.projection_bias or not image.projection


def read_text(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, Any]) -> BertConfig:
    """The text tower of text_cfg (`config`), with the sizes of the tensors (`shapes`: name -> shape).

    files: the JSON files beside the weights, of which one may be the text tower's own.
    """
    where, name = f"{open_clip.CONFIG}: text_cfg", config["hf_model_name"]
    at = "text.transformer"
    known = bert_rules.read_rules(name, f"{where}.hf_model_name={name!r}", shapes, files, at)
    default = "mean_pooler" if known.positions_after_padding else "cls_last_hidden_state_pooler"
    pooler, projection = config.get("hf_pooler_type", "mean_pooler") or default, config.get("hf_proj_type", "mlp")
    if pooler not in POOLERS:
        raise InteropError(f"{where}.hf_pooler_type={pooler!r} is not one of {', '.join(POOLERS)}.")
    if projection not in PROJECTIONS:
        raise InteropError(f"{where}.hf_proj_type={projection!r} is not one of mlp, linear, null.")
    try:
        vocab_size, width = shapes[f"{at}.embeddings.word_embeddings.weight"]
        num_positions, _ = shapes[f"{at}.embeddings.position_embeddings.weight"]
        token_types, _ = shapes[f"{at}.embeddings.token_type_embeddings.weight"]
        mlp_dim, _ = shapes[f"{at}.encoder.layer.0.intermediate.dense.weight"]
    except (KeyError, ValueError) as error:
        raise InteropError(f"The text tower is not a {name}: {error} is missing or has another shape.") from error
    return replace(
        known,
        vocab_size=vocab_size,
        context_length=config.get("context_length", open_clip.TEXT["context_length"]),
        num_positions=num_positions,
        token_types=token_types,
        width=width,
        depth=len({name.split(".")[4] for name in shapes if name.startswith(f"{at}.encoder.layer.")}),
        mlp_dim=mlp_dim,
        pool=POOLERS[pooler],
        pooler=pooler == "cls_pooler" or f"{at}.pooler.dense.weight" in shapes,
        projection=PROJECTIONS[projection],
    )


def write(meaning: Meaning) -> dict[str, Any]:
    """Raises InteropError for a text tower that has no name on the hub."""
    model, text = meaning.model, meaning.model.text
    names = [name for name, known in BERT_TOWERS.items() if _named(known) == _named(text)]
    if not names:
        known = ", ".join(BERT_TOWERS)
        raise InteropError(f"open_clip's text_cfg names a model on the hub, and config.model.text is none of {known}.")
    pooler = {ours: theirs for theirs, ours in POOLERS.items()}.get(text.pool)
    projection = {ours: theirs for theirs, ours in PROJECTIONS.items()}[text.projection]
    config = dict(hf_model_name=names[0], hf_tokenizer_name=names[0], hf_model_pretrained=False)
    config |= dict(context_length=text.context_length, hf_pooler_type=pooler, hf_proj_type=projection)
    quick = model.image.activation == "quick_gelu"
    return open_clip.write_around(meaning, _write_image(model.image), config, quick_gelu=quick)


def _write_image(image: ViTConfig) -> dict[str, Any]:
    if not _of_timm(image):
        return open_clip.write_image(image)
    return open_clip_timm.write_image(image) if image.projection else open_clip_siglip.write_image(image)


def hub_config(text: BertConfig) -> dict[str, Any]:
    """The text tower's config.json, as it is on the hub."""
    return dict(
        model_type="xlm-roberta" if text.positions_after_padding else "bert",  # RoBERTa computes what XLM-R does
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        num_hidden_layers=text.depth,
        num_attention_heads=text.num_heads,
        intermediate_size=text.mlp_dim,
        max_position_embeddings=text.num_positions,
        hidden_act=hf_parts.THEIR_ACTIVATIONS[text.activation],
        type_vocab_size=text.token_types,
        pad_token_id=text.pad_id,
        layer_norm_eps=text.norm_eps,
    )


def text_tensors(model: ModelConfig) -> list[Tensor]:
    """The text tower's part of the table: text.transformer.* and text.proj.*."""
    text, at = model.text, "text.transformer.embeddings"
    tensors = [
        Tensor("text/token_embedding/embedding", (f"{at}.word_embeddings.weight",)),
        Tensor("text/position_embedding", (f"{at}.position_embeddings.weight",)),
        Tensor("text/token_type_embedding", (f"{at}.token_type_embeddings.weight",)),
        *norm("text/ln_embedding", f"{at}.LayerNorm"),
        *hf_parts.bert_blocks("text", "text.transformer"),
    ]
    if text.pooler:
        tensors += weight_and_bias("text/pooler", "text.transformer.pooler.dense", linear)
    if text.projection == "mlp":
        tensors += weight_and_bias("text/projection_hidden", "text.proj.0", linear, text.projection_bias)
        tensors += weight_and_bias("text/projection", "text.proj.2", linear, text.projection_bias)
    elif text.projection == "linear":
        tensors += weight_and_bias("text/projection", "text.proj", linear, text.projection_bias)
    return tensors


def _named(text: BertConfig) -> dict[str, Any]:
    return {name: value for name, value in computed_fields(text).items() if name not in CONFIGURED}


FAMILY = Family(
    tensors,
    matches,
    read,
    write=write,
    text=BertConfig,
    hub_config=hub_config,
    **open_clip.OPTIONS | dict(ignored=IGNORED),
)
