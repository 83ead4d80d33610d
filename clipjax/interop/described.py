"""What is known about weights beside their numbers, on their side and on ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from clipjax.config import ModelConfig, PixelConfig, TokenizerConfig
from clipjax.interop.names import InteropError


class Description(NamedTuple):
    """Theirs: what a family reads its configuration from."""

    files: Mapping[str, Any]  # name -> content of every JSON file of the directory; {} for a single file
    shapes: Mapping[str, tuple[int, ...]]  # name -> shape of every tensor
    beside: frozenset[str] = frozenset()  # names of the directory's other files, tokenizers among them


class Meaning(NamedTuple):
    """Ours: what the weights are, and how images and texts reach them."""

    model: ModelConfig
    pixels: PixelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()  # path: a file of the directory; "" where there is none


def config_of(description: Description, name: str) -> Mapping[str, Any]:
    """The content of a configuration file. Raises InteropError where it is not beside the weights."""
    if name not in description.files:
        raise InteropError(
            f"There is no {name} beside the weights: say what they are with --preset, such as siglip_b16."
        )
    return description.files[name]


def refuse_other_pixels(found: PixelConfig, only: PixelConfig, who: str) -> None:
    """Raises InteropError where images do not reach the model as code without a configuration prepares them.

    Half a pixel's difference in the centre crop is let pass.
    """
    for field in ("resize", "scale_to", "interpolation", "antialias", "mean", "std"):
        value, wanted = getattr(found, field), getattr(only, field)
        if value != wanted:
            raise InteropError(
                f"{who} prepares images with {field}={wanted!r}, and not {value!r} (config.data.pixels)."
            )
