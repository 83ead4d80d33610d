"""One row per published format: how its files are recognised, what they say, and which tensors they hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from clipjax.config import ModelConfig, nearest
from clipjax.interop import hf_align, hf_clip
from clipjax.interop.described import Description, Meaning
from clipjax.interop.names import InteropError, Tensor


class Family(NamedTuple):
    tensors: Callable[[ModelConfig], list[Tensor]]  # the table; see names.py
    matches: Callable[[Description], bool]  # whether files are of this family
    read: Callable[[Description], Meaning]  # raises InteropError for what we cannot compute
    write: Callable[[Meaning], dict[str, Any]]  # the JSON files beside the weights, by name
    format: str  # what `clipjax export --format` calls it; several families may share one
    ignored: str = r"(?!)"  # regular expression of tensors that hold no weights


FAMILIES: dict[str, Family] = {
    "hf_align": Family(
        hf_align.tensors, hf_align.matches, hf_align.read, hf_align.write, "hf", r".*\.(position|token_type)_ids"
    ),
    "hf_clip": Family(hf_clip.tensors, hf_clip.matches, hf_clip.read, hf_clip.write, "hf", r".*\.position_ids"),
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
    """The tensors of a file without those that hold no weights (position ids, sizes)."""
    return {name: value for name, value in found.items() if not re.fullmatch(family.ignored, name)}
