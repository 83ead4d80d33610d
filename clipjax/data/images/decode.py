"""Encoded image -> upright RGB, or a smaller version of it in which the part to be used still has enough pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from clipjax.data.images.jpeg import decode_small
from clipjax.data.images.resize import Box
from clipjax.data.records import RecordError

MAX_PIXELS = 64 * 1024 * 1024  # decoded RGB of 192 MiB; larger files are refused by their header
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# EXIF orientation -> the operation that turns the stored image upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_ORIENTATION = 0x0112
# EXIF orientation -> for (columns, rows) of the upright image: 1 if they run opposite to the stored ones.
FROM_THE_END = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


def open_image(data: bytes, at_least: int | None = None, alpha: str = "white") -> Image.Image:
    """A decoded RGB image: upright by its EXIF orientation; of an animation the first frame.

    at_least: a JPEG is decoded at a half, a quarter or an eighth of its size while both sides stay that long.
    alpha: "white" composes transparent pixels over white, "drop" shows the colour they hide.
    Raises RecordError for a file that is empty, truncated, of an unknown format, or larger than MAX_PIXELS.
    """
    return read_box(data, lambda width, height: (0, 0, width, height), at_least, alpha)[0]


def read_box(
    data: bytes, choose_box: Callable[[int, int], Box], size: int | None, alpha: str, decoder: str = "pillow"
) -> tuple[Image.Image, Box]:
    """(decoded upright RGB image, box in its coordinates). choose_box(width, height) chooses in the full image.

    With a size, the image may be a smaller version of the file, in which the box still has `size` pixels a side if it
    has them in the file. decoder "simplejpeg" makes such versions of plain JPEGs; Pillow decodes everything else.
    Raises RecordError as open_image does.
    """
    if not data:
        raise RecordError("empty image", "the image has zero bytes")
    with _damage_as_record_error(data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    stored = image.size
    if stored[0] * stored[1] > MAX_PIXELS:
        raise RecordError("image too large", f"{stored[0]} x {stored[1]} pixels, the limit is {MAX_PIXELS} in all")
    orientation = _orientation(image)
    # The last four orientations swap the sides.
    full = stored[::-1] if orientation >= 5 else stored
    box = choose_box(*full)
    shrink, small = 1.0, None
    with _damage_as_record_error(data):
        if size:
            by = min(box[2] - box[0], box[3] - box[1]) / size
            # Mode RGB and format JPEG: not grey, not CMYK, not several pictures in one file (MPO).
            if decoder == "simplejpeg" and image.format == "JPEG" and image.mode == "RGB":
                small = decode_small(data, stored, by)
            if small:
                image, shrink = Image.fromarray(small[0]), small[1]
            # draft divides by the largest of 1, 2, 4 and 8 that leaves the size asked for.
            elif drafted := image.draft(None, tuple(max(1, int(side / by)) for side in stored)):
                shrink = stored[0] / drafted[1][2]
        image.load()
        upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        # Sides of the smaller version are rounded up. Mirrored, the part beyond the file's last pixel comes first.
        ends = FROM_THE_END.get(orientation, (0, 0))
        beyond = [end * (side - whole / shrink) for end, side, whole in zip(ends, upright.size, full, strict=True)]
        box = tuple(edge / shrink + extra for edge, extra in zip(box, beyond * 2, strict=True))
        return _to_rgb(upright, alpha), box


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF data beside sound pixels: leave the image as it is
        return 1


def _to_rgb(image: Image.Image, alpha: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips instead of scaling.
        grey = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.uint8(np.clip(grey / 257.0, 0, 255) + 0.5)).convert("RGB")
    if image.mode == "F":
        raise RecordError("corrupt image", "pixels are floating-point numbers of unknown range")
    if alpha == "white" and image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _damage_as_record_error(data: bytes) -> Iterator[None]:
    try:
        yield
    except RecordError:
        raise
    except Image.DecompressionBombError as error:
        raise RecordError("image too large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise RecordError("not an image", f"none of {', '.join(FORMATS)} ({len(data)} bytes)") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged input; a reader needs only one
        raise RecordError("corrupt image", f"{type(error).__name__}: {error}") from error
