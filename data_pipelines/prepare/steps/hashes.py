"""What makes images and captions comparable without looking at every pair."""

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
    """64 bits of which few differ between images that look alike: the perceptual hash by DCT.

    The image in grey at 32 x 32 and its 8 x 8 lowest frequencies; a bit is whether one is above their median. After
    Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1, but shrunk by
    Lanczos' filter: by box filters, sizes that are no multiple of 32 change many bits.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = _DCT @ grey @ _DCT.T
    bits = low.ravel() > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes())


def colours(image: Image.Image) -> str:
    """Mean red, green and blue of a grid of 4 x 4, in hexadecimal: tells apart what image_hash, being grey, cannot."""
    return np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX)).tobytes().hex()


def distance(a: int, b: int) -> int:
    """Number of bits that differ."""
    return (a ^ b).bit_count()


def bands(image_hash: int, bits: int) -> Iterator[str]:
    """Names of bits + 1 groups such that hashes at a distance of at most `bits` share one of them at least.

    The hash is cut into bits + 1 bands; `bits` differing bits leave one band untouched.
    """
    count = bits + 1
    edges = [HASH_BITS * i // count for i in range(count + 1)]
    for band, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        yield f"image {bits} {band} {image_hash >> low & (1 << high - low) - 1:x}"


def text_hash(text: str) -> str:
    """Equal for captions that differ in case, accents' encoding, punctuation and white space only."""
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return hashlib.sha256(plain.encode()).hexdigest()[:24]


def pixels_sha(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:32]


def _dct_rows() -> np.ndarray:
    """[8, 32]: the first rows of the orthogonal DCT-II."""
    k, n = np.arange(_LOW)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE)) * np.sqrt(np.where(k, 2, 1) / _SIDE)


_DCT = _dct_rows()
