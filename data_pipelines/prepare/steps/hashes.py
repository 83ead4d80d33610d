"""Hashes by which images and captions are compared without looking at every pair."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from PIL import Image

HASH_BITS = 64
_SIDE, _LOW = 32, 8


def image_hash(image: Image.Image) -> int:
    """A perceptual hash: 64 bits, few of which differ between images that look alike.

    Each bit tells whether one of the 8 x 8 lowest DCT frequencies of the grey image at 32 x 32 is above their median.
    Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1. It shrinks images by
    a box filter, which changes many bits for sizes that are no multiple of 32; here Lanczos' filter is used.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = _DCT @ grey @ _DCT.T
    bits = low.ravel() > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes())


def colours(image: Image.Image) -> str:
    """Mean red, green and blue in a grid of 4 x 4, in hexadecimal. image_hash sees grey only."""
    return np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX)).tobytes().hex()


def distance(a: int, b: int) -> int:
    """The number of bits that differ."""
    return (a ^ b).bit_count()


def bands(image_hash: int, bits: int) -> Iterator[str]:
    """Names of bits + 1 groups. Hashes at a distance of at most `bits` share at least one of them.

    The hash is cut into bits + 1 bands, of which `bits` differing bits leave one unchanged.
    """
    count = bits + 1
    edges = [HASH_BITS * i // count for i in range(count + 1)]
    for band, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        yield f"image {bits} {band} {image_hash >> low & (1 << high - low) - 1:x}"


def text_hash(text: str) -> str:
    """A digest, equal for captions that differ only in case, encoding of accents, punctuation and white space."""
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return hashlib.sha256(plain.encode()).hexdigest()[:24]


def pixels_sha(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:32]


def _dct_rows() -> np.ndarray:
    """[8, 32]: the first rows of the orthogonal DCT-II."""
    k, n = np.arange(_LOW)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE)) * np.sqrt(np.where(k, 2, 1) / _SIDE)


_DCT = _dct_rows()
