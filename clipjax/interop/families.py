"""One row per published format: how its files are recognised, what they say, and which tensors they hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from clipjax.config import ModelConfig, PixelConfig, nearest
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import (
    big_vision,
    coca,
    eva,
    hf_align,
    hf_clip,
    hf_siglip,
    hf_siglip2,
    open_clip,
    open_clip_bert,
    open_clip_conv,
    open_clip_siglip,
    openai,
)
from clipjax.interop.names import Description, InteropError, Meaning, Tensor
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.convnext import ConvNeXtConfig
from clipjax.models.towers.efficientnet import EfficientNetConfig
from clipjax.models.towers.naflex import NaFlexConfig
from clipjax.models.towers.resnet import ResNetConfig
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig


class Family(NamedTuple):
    tensors: Callable[[ModelConfig], list[Tensor]]  # the table; see names.py
    matches: Callable[[Description], bool]  # whether files are of this family
    read: Callable[[Description], Meaning]  # raises InteropError for what we cannot compute
    write: Callable[[Meaning], dict[str, Any]]  # the JSON files beside the weights, by name
    format: str  # what `clipjax export --format` calls it; several families may share one
    ignored: str = r"(?!)"  # regular expression of (renamed) tensors that hold no weights
    renamed: Callable[[str], str] = lambda name: name  # a name in a file -> the table's; files differ in a prefix
    weights: str = "model.safetensors"  # the file that an export writes
    pixels: PixelConfig = PixelConfig()  # with --preset, where no file says
    constants: Callable[[ModelConfig], dict[str, np.ndarray]] = (
        lambda model: {}
    )  # tensors that hold no weights, written
    image: type = ViTConfig  # the towers that the format holds
    text: type = TextTransformerConfig


_HF = dict(format="hf", ignored=r".*\.(position|token_type)_ids")
_OPEN_CLIP = dict(
    format="open_clip", ignored=open_clip.IGNORED, weights="open_clip_model.safetensors", pixels=open_clip.PIXELS
)
# With or without "text." in front of the text tower's names.
_CLIP = _OPEN_CLIP | dict(renamed=open_clip.renamed)
_OPENAI = _CLIP | dict(format="openai", weights="model.pt", constants=openai.numbers)
_EVA = _OPEN_CLIP | dict(ignored=eva.IGNORED)
_BIG_VISION = dict(ignored=big_vision.IGNORED, renamed=big_vision.renamed, weights="checkpoint.npz")


def _of(module: ModuleType, **options: Any) -> Family:
    return Family(module.tensors, module.matches, module.read, module.write, **options)


FAMILIES: dict[str, Family] = {
    "hf_align": _of(hf_align, **_HF, pixels=PIXEL_PRESETS["align"], image=EfficientNetConfig, text=BertConfig),
    "hf_clip": _of(hf_clip, **_HF, pixels=hf_clip.PIXELS),
    "hf_siglip": _of(hf_siglip, **_HF),
    "hf_siglip2": _of(hf_siglip2, **_HF, pixels=hf_siglip2.PIXELS, image=NaFlexConfig),
    "open_clip": _of(open_clip, **_CLIP),
    "open_clip_coca": _of(coca, **_OPEN_CLIP),
    "open_clip_resnet": Family(
        open_clip_conv.resnet_tensors,
        open_clip_conv.matches_resnet,
        open_clip_conv.read_resnet,
        open_clip_conv.write_resnet,
        **_CLIP,
        image=ResNetConfig,
    ),
    "open_clip_convnext": Family(
        open_clip_conv.convnext_tensors,
        open_clip_conv.matches_convnext,
        open_clip_conv.read_convnext,
        open_clip_conv.write_convnext,
        **_CLIP,
        image=ConvNeXtConfig,
    ),
    "open_clip_siglip": _of(open_clip_siglip, **_OPEN_CLIP | dict(pixels=PixelConfig())),
    "open_clip_hf_text": _of(open_clip_bert, **_OPEN_CLIP | dict(ignored=open_clip_bert.IGNORED), text=BertConfig),
    "open_clip_eva": Family(eva.timm_tensors, eva.matches, eva.read, eva.write, **_EVA),
    "eva_clip": Family(
        eva.original_tensors,
        eva.matches_original,
        eva.read_original,
        eva.write_original,
        **_EVA | dict(format="eva_clip", weights="model.pt"),
    ),
    "openai": Family(open_clip.tensors, openai.matches, openai.read, openai.write, **_OPENAI),
    "openai_resnet": Family(
        open_clip_conv.resnet_tensors,
        openai.matches_resnet,
        openai.read_resnet,
        openai.write,
        **_OPENAI,
        image=ResNetConfig,
    ),
    "big_vision": _of(big_vision, format="big_vision", **_BIG_VISION),
    "big_vision_stacked": Family(
        big_vision.stacked_tensors,
        big_vision.matches_stacked,
        big_vision.read,
        big_vision.write,
        format="big_vision_stacked",
        **_BIG_VISION,
    ),
}


def check_towers(family: Family, model: ModelConfig) -> None:
    """Raises InteropError for a model whose towers are not those of the format."""
    for side, tower, wanted in (("image", model.image, family.image), ("text", model.text, family.text)):
        if not isinstance(tower, wanted):
            raise InteropError(f"The format's {side} tower is '{wanted.name}', and this model's is '{tower.name}'.")


def recognise(description: Description, name: str = "") -> tuple[str, Family]:
    """(name, the family) of some files; name: what the user says it is, "" to find out.

    Raises InteropError for an unknown name, or where no family or more than one fits.
    """
    if name:
        if name not in FAMILIES:
            raise InteropError(f"Unknown family '{name}'.{nearest(name, FAMILIES)}")
        return name, FAMILIES[name]
    fitting = [known for known, family in FAMILIES.items() if family.matches(description)]
    if len(fitting) != 1:
        found = f"families {', '.join(fitting)}" if fitting else "none of the families"
        raise InteropError(
            f"The weights look like {found}: say which with --family, one of {', '.join(FAMILIES)}. "
            f"Some of their tensors: {', '.join(list(description.shapes)[:5])}."
        )
    return fitting[0], FAMILIES[fitting[0]]


def weights(family: Family, found: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a file under the table's names, without those that hold no weights (position ids, sizes)."""
    named = {family.renamed(name): value for name, value in found.items()}
    return {name: value for name, value in named.items() if not re.fullmatch(family.ignored, name)}
