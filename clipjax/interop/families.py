"""One row per published format: how its files are recognised, what they say, and which tensors they hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from clipjax.config import ModelConfig, PixelConfig, nearest
from clipjax.data.pixel_presets import PIXEL_PRESETS
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
)
from clipjax.interop.described import Description, Meaning
from clipjax.interop.names import InteropError, Tensor


class Family(NamedTuple):
    tensors: Callable[[ModelConfig], list[Tensor]]  # the table; see names.py
    matches: Callable[[Description], bool]  # whether files are of this family
    read: Callable[[Description], Meaning]  # raises InteropError for what we cannot compute
    write: Callable[[Meaning], dict[str, Any]]  # the JSON files beside the weights, by name
    format: str  # what `clipjax export --format` calls it; several families may share one; "": not written
    ignored: str = r"(?!)"  # regular expression of (renamed) tensors that hold no weights
    renamed: Callable[[str], str] = lambda name: name  # a name in a file -> the table's; files differ in a prefix
    weights: str = "model.safetensors"  # the file that an export writes
    pixels: PixelConfig = PixelConfig()  # with --preset, where no file says


POSITION_IDS = r".*\.(position|token_type)_ids"
FAMILIES: dict[str, Family] = {
    "hf_align": Family(
        hf_align.tensors,
        hf_align.matches,
        hf_align.read,
        hf_align.write,
        "hf",
        POSITION_IDS,
        pixels=PIXEL_PRESETS["align"],
    ),
    "hf_clip": Family(
        hf_clip.tensors, hf_clip.matches, hf_clip.read, hf_clip.write, "hf", POSITION_IDS, pixels=hf_clip.PIXELS
    ),
    "hf_siglip": Family(hf_siglip.tensors, hf_siglip.matches, hf_siglip.read, hf_siglip.write, "hf", POSITION_IDS),
    "hf_siglip2": Family(
        hf_siglip2.tensors,
        hf_siglip2.matches,
        hf_siglip2.read,
        hf_siglip2.write,
        "hf",
        POSITION_IDS,
        pixels=hf_siglip2.PIXELS,
    ),
    "open_clip": Family(
        open_clip.tensors,
        open_clip.matches,
        open_clip.read,
        open_clip.write,
        "open_clip",
        open_clip.IGNORED,
        renamed=open_clip.renamed,
        weights="open_clip_model.safetensors",
        pixels=open_clip.PIXELS,
    ),
    "open_clip_coca": Family(
        coca.tensors,
        coca.matches,
        coca.read,
        coca.write,
        "open_clip",
        open_clip.IGNORED,
        weights="open_clip_model.safetensors",
        pixels=open_clip.PIXELS,
    ),
    "openai": Family(
        open_clip.tensors,
        open_clip.matches_openai,
        open_clip.read_openai,
        open_clip.write,
        "",
        open_clip.IGNORED,
        renamed=open_clip.renamed,
        pixels=open_clip.PIXELS,
    ),
    "open_clip_resnet": Family(
        open_clip_conv.resnet_tensors,
        open_clip_conv.matches_resnet,
        open_clip_conv.read_resnet,
        open_clip_conv.write_resnet,
        "open_clip",
        open_clip.IGNORED,
        renamed=open_clip.renamed,
        weights="open_clip_model.safetensors",
        pixels=open_clip.PIXELS,
    ),
    "open_clip_convnext": Family(
        open_clip_conv.convnext_tensors,
        open_clip_conv.matches_convnext,
        open_clip_conv.read_convnext,
        open_clip_conv.write_convnext,
        "open_clip",
        open_clip.IGNORED,
        renamed=open_clip.renamed,
        weights="open_clip_model.safetensors",
        pixels=open_clip.PIXELS,
    ),
    "openai_resnet": Family(
        open_clip_conv.resnet_tensors,
        open_clip_conv.matches_openai,
        open_clip_conv.read_openai,
        open_clip_conv.write_resnet,
        "",
        open_clip.IGNORED,
        renamed=open_clip.renamed,
        pixels=open_clip.PIXELS,
    ),
    "open_clip_siglip": Family(
        open_clip_siglip.tensors,
        open_clip_siglip.matches,
        open_clip_siglip.read,
        open_clip_siglip.write,
        "open_clip",
        weights="open_clip_model.safetensors",
    ),
    "open_clip_eva": Family(
        eva.timm_tensors,
        eva.matches,
        eva.read,
        eva.write,
        "open_clip",
        eva.IGNORED,
        weights="open_clip_model.safetensors",
        pixels=open_clip.PIXELS,
    ),
    "eva_clip": Family(
        eva.original_tensors,
        eva.matches_original,
        eva.read_original,
        eva.write,
        "",
        eva.IGNORED,
        pixels=open_clip.PIXELS,
    ),
    "open_clip_hf_text": Family(
        open_clip_bert.tensors,
        open_clip_bert.matches,
        open_clip_bert.read,
        open_clip.write,
        "",
        open_clip_bert.IGNORED,
        pixels=open_clip.PIXELS,
    ),
    "big_vision": Family(
        big_vision.tensors,
        big_vision.matches,
        big_vision.read,
        big_vision.write,
        "big_vision",
        big_vision.IGNORED,
        renamed=big_vision.renamed,
        weights="checkpoint.npz",
    ),
    "big_vision_stacked": Family(
        big_vision.stacked_tensors,
        big_vision.matches_stacked,
        big_vision.read,
        big_vision.write,
        "big_vision_stacked",
        big_vision.IGNORED,
        renamed=big_vision.renamed,
        weights="checkpoint.npz",
    ),
}


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
