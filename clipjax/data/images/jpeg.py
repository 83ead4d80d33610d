"""JPEGs for training, decoded at a fraction of their size by libjpeg-turbo itself, without Pillow."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math

import numpy as np
from absl import logging

from clipjax.config import DataConfig, require
from clipjax.data.records import RecordError

SCANS = 100  # of a progressive JPEG; programs write about ten, and each is a pass over all pixels
SCANNED_PIXELS = 1 << 30  # times scans
# Without 7, which costs more than the whole image: libjpeg-turbo vectorises only 8/8, 4/8, 2/8 and 1/8.
EIGHTHS = (1, 2, 3, 4, 5, 6, 8)


def check_scans(data: bytes, pixels: int) -> None:
    """Refuses a JPEG whose scans would take minutes. Raises RecordError above SCANS, or SCANNED_PIXELS in all."""
    most = min(SCANS, max(1, SCANNED_PIXELS // max(1, pixels)))
    if data.count(b"\xff\xda") <= most:  # thumbnails have some, too, so that the count is one at most
        return
    scans, at = 0, 2
    while at + 4 <= len(data):
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            break
        marker = data[at + 1]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    if scans > most:
        raise RecordError("too many scans", f"a JPEG of {scans} scans of {pixels} pixels, the limit is {most}")


def decode_small(data: bytes, size: tuple[int, int], shrink: float) -> tuple[np.ndarray, float] | None:
    """([h, w, 3] uint8 RGB, divisor of each side): the smallest version that is shrunk by no more than `shrink`.

    size: (width, height) in the file's header. Returns None where libjpeg-turbo reports an error or a warning; Pillow
    then decides whether the file can be used.
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
    """data with decoder "auto" replaced by the one that this machine has, so that a run's config names it.

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
