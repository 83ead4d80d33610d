"""The published formats that clipjax reads and writes. To add one: a file here with its `Family`, and a row below."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from clipjax.config import ModelConfig, nearest
from clipjax.interop import (
    big_vision,
    coca,
    eva,
    hf_align,
    hf_chinese_clip,
    hf_clip,
    hf_siglip,
    hf_siglip2,
    long_clip,
    open_clip,
    open_clip_bert,
    open_clip_conv,
    open_clip_siglip,
    open_clip_timm,
    open_clip_vitamin,
    openai,
)
from clipjax.interop.names import Description, Family, InteropError
from clipjax.interop.one_tower import one_tower
from clipjax.interop.unrecognised import unrecognised

FAMILIES: dict[str, Family] = {
    "hf_align": hf_align.FAMILY,
    "hf_clip": hf_clip.FAMILY,
    "hf_clip_image": one_tower(hf_clip.FAMILY, "image", "clip", "metaclip_2", "chinese_clip", projects=True),
    "hf_clip_text": one_tower(hf_clip.FAMILY, "text", "clip", "metaclip_2", projects=True),
    # After CLIP's, which has the same image tower: an export is of the first family that can hold the model.
    "hf_chinese_clip": hf_chinese_clip.FAMILY,
    "hf_siglip": hf_siglip.FAMILY,
    "hf_siglip_image": one_tower(hf_siglip.FAMILY, "image", "siglip", projects=False),
    "hf_siglip_text": one_tower(hf_siglip.FAMILY, "text", "siglip", "siglip2", projects=False),
    "hf_siglip2": hf_siglip2.FAMILY,
    "hf_siglip2_image": one_tower(hf_siglip2.FAMILY, "image", "siglip2", projects=False),
    "open_clip": open_clip.FAMILY,
    "open_clip_coca": coca.FAMILY,
    "open_clip_resnet": open_clip_conv.RESNET,
    "open_clip_convnext": open_clip_conv.CONVNEXT,
    "open_clip_siglip": open_clip_siglip.FAMILY,
    "open_clip_hf_text": open_clip_bert.FAMILY,
    "open_clip_eva": eva.TIMM,
    "eva_clip": eva.ORIGINAL,
    "open_clip_timm": open_clip_timm.FAMILY,
    "open_clip_vitamin": open_clip_vitamin.FAMILY,
    "long_clip": long_clip.FAMILY,
    "openai": openai.VIT,
    "openai_resnet": openai.RESNET,
    "big_vision": big_vision.PER_LAYER,
    "big_vision_stacked": big_vision.STACKED,
}


def formats() -> list[str]:
    """The names that `clipjax export --format` knows."""
    return sorted({family.format for family in FAMILIES.values()})


def families_of(format: str) -> dict[str, Family]:
    """The families that a format writes. Raises InteropError for an unknown format."""
    if format not in formats():
        raise InteropError(f"Unknown format '{format}'.{nearest(format, [*formats(), 'adapters', 'peft'])}")
    return {name: family for name, family in FAMILIES.items() if family.format == format}


def recognise(description: Description, name: str = "") -> tuple[str, Family]:
    """(name, family) of files. name: the family that the user named; "" to recognise it.

    Raises InteropError for an unknown name, or where no family or more than one fits.
    """
    if name:
        if name not in FAMILIES:
            raise InteropError(f"Unknown family '{name}'.{nearest(name, FAMILIES)}")
        return name, FAMILIES[name]
    fitting = [known for known, family in FAMILIES.items() if _fits(family, description)]
    if len(fitting) > 1:  # a directory with the configurations of two libraries: whose names the tensors have
        own = [known for known in fitting if FAMILIES[known].format == format_of(description.shapes)]
        fitting = own or fitting
    if not fitting:
        raise InteropError(unrecognised(description))
    if len(fitting) > 1:
        raise InteropError(
            f"The weights look like families {', '.join(fitting)}. Name one with --family. "
            f"Some of their tensors: {', '.join(list(description.shapes)[:5])}."
        )
    return fitting[0], FAMILIES[fitting[0]]


def _fits(family: Family, description: Description) -> bool:
    try:
        return family.matches(description)
    except (AttributeError, TypeError):  # a section of a configuration that is none
        return False


def format_of(names: Iterable[str]) -> str:
    """Whose names the tensors have, as --format calls it: "hf" (transformers) or "open_clip"; "" for another's."""
    starts = {name.partition(".")[0] for name in names}
    return "hf" if starts & {"vision_model", "text_model"} else "open_clip" if "visual" in starts else ""


def check_towers(name: str, family: Family, model: ModelConfig) -> None:
    """Raises InteropError unless the model has the towers that the family's table names."""
    if not (isinstance(model.image, family.image) and isinstance(model.text, family.text)):
        raise InteropError(
            f"family '{name}' holds the towers '{family.image.name}' and '{family.text.name}'; this model has "
            f"'{model.image.name}' and '{model.text.name}'."
        )


def weights(family: Family, tensors: dict[str, Any]) -> dict[str, Any]:
    """A file's tensors under the table's names, without those that are no weights (position ids, sizes)."""
    named = {family.renamed(name): value for name, value in tensors.items()}
    return {name: value for name, value in named.items() if not re.fullmatch(family.ignored, name)}
