"""Thumbnails as data URIs, which pages and JSON files hold."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from clipjax.data.images.decode import open_image

SIDE = 96  # pixels of a thumbnail's longer side
_HEAD = "data:image/webp;base64,"


def thumbnail(data: bytes, side: int = SIDE) -> str:
    """A WebP of an encoded image, at most `side` pixels a side, as a data URI. Raises RecordError."""
    image = open_image(data, at_least=side)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80)
    return _HEAD + base64.b64encode(file.getvalue()).decode()


def pixels_of(uri: str) -> np.ndarray:
    """[H, W, 3] uint8: the pixels of a thumbnail."""
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(_HEAD)))) as image:
        return np.asarray(image.convert("RGB"))


def is_thumbnail(uri: object) -> bool:
    """Whether a value may be shown as a picture: it is the data URI of a WebP and of nothing else."""
    return (
        isinstance(uri, str)
        and uri.startswith(_HEAD)
        and uri[len(_HEAD) :].replace("+", "").replace("/", "").rstrip("=").isalnum()
    )
