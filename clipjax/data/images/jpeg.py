"""JPEGs for training, decoded at a fraction of their size by libjpeg-turbo without Pillow in between."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math

import numpy as np
from absl import logging

from clipjax.config import DataConfig, require

# 7/8 costs more than the whole image: only 1, 1/2, 1/4 and 1/8 are vectorised in libjpeg-turbo.
EIGHTHS = (1, 2, 3, 4, 5, 6, 8)


def decode_small(data: bytes, size: tuple[int, int], shrink: float) -> tuple[np.ndarray, float] | None:
    """([h, w, 3] uint8 RGB, by what each side was divided): the smallest version shrunk by no more than `shrink`.

    size: (width, height) by the file's header. None where libjpeg-turbo has an error or as little as a warning: whether
    such a file can be used is for Pillow to say.
    """
    import simplejpeg

    eighths = next(n for n in EIGHTHS if n * shrink >= 8 or n == 8)
    width, height = (math.ceil(side * eighths / 8) for side in size)
    least = {"min_width": width, "min_height": height} if eighths < 8 else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", **least)
    except ValueError:
        return None
    return (pixels, 8 / eighths) if pixels.shape[:2] == (height, width) else None


def choose_decoder(data: DataConfig) -> DataConfig:
    """data with "auto" replaced by the decoder that runs here, so that a run's config says which it was.

    Raises ConfigError for "simplejpeg" where it is not installed.
    """
    if data.decoder == "pillow":
        return data
    installed = importlib.util.find_spec("simplejpeg") is not None
    require(
        installed or data.decoder == "auto",
        "config.data.decoder='simplejpeg', but simplejpeg is not installed: pip install simplejpeg, or use 'pillow'.",
    )
    name = "simplejpeg" if installed else "pillow"
    if data.decoder == "auto":
        _log_once(name)
    return dataclasses.replace(data, decoder=name)


@functools.cache
def _log_once(name: str) -> None:
    if name == "pillow":
        logging.warning("Training decodes JPEGs with Pillow; with simplejpeg (pip install simplejpeg) it is faster.")
    else:
        logging.info("Training decodes JPEGs with %s.", name)
