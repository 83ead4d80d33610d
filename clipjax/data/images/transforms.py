"""Encoded image -> uint8 RGB of the tower's size, on the host: Pillow; training's JPEGs may use jpeg.py."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from clipjax.config import AugmentConfig, PixelConfig
from clipjax.data.images.jpeg import decode_small
from clipjax.data.images.resize import Box, resize, to_square
from clipjax.data.records import RecordError

MAX_PIXELS = 64 * 1024 * 1024  # decoded RGB of 192 MiB; larger files are refused by their header
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# EXIF orientation -> what turns the stored image upright.
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
# Orientations whose upright (columns, rows) are counted from where the stored ones end.
FROM_THE_END = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


def eval_image(data: bytes, size: int, pixels: PixelConfig) -> np.ndarray:
    """[size, size, 3] uint8 without augmentation, by pixels: see clipjax.data.images.resize. Raises RecordError."""
    return to_square(open_image(data, alpha=pixels.alpha), size, pixels)


def train_image(
    data: bytes,
    size: int,
    pixels: PixelConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
    decoder: str = "pillow",
) -> np.ndarray:
    """[size, size, 3] uint8, augmented by draws from rng. Raises RecordError.

    A JPEG whose crop is larger than `size` is decoded at a fraction of its size that leaves the crop at least `size`:
    eighths by decoder "simplejpeg"; a half, a quarter or an eighth by "pillow". The crop is the same for both.
    """
    if augment.name == "none":
        array = eval_image(data, size, pixels)
    else:
        choose = lambda width, height: crop_box(width, height, augment, rng)  # noqa: E731
        image, box = read_box(data, choose, size, pixels.alpha, decoder)
        array = resize(image, (size, size), box, pixels)
    return np.ascontiguousarray(array[:, ::-1]) if rng.random() < augment.flip else array


def open_image(data: bytes, at_least: int | None = None, alpha: str = "white") -> Image.Image:
    """A decoded RGB image: EXIF rotation applied, first frame of an animation; transparency over white, or dropped.

    at_least: a JPEG is decoded at a half, quarter or eighth of its size while both sides stay that long.
    Raises RecordError for what is empty, unknown, truncated or larger than MAX_PIXELS.
    """
    return read_box(data, lambda width, height: (0, 0, width, height), at_least, alpha)[0]


def crop_box(width: int, height: int, augment: AugmentConfig, rng: np.random.Generator) -> Box:
    """A random box of whole pixels by area share and aspect ratio, as torchvision RandomResizedCrop.get_params:
    ten tries, then the centre with the nearest allowed ratio."""
    low, high = (math.log(r) for r in augment.ratio)
    for _ in range(10):
        area = width * height * rng.uniform(*augment.scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return (left, top, left + w, top + h)
    ratio = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)


def read_box(
    data: bytes, choose_box: Callable[[int, int], Box], size: int | None, alpha: str, decoder: str = "pillow"
) -> tuple[Image.Image, Box]:
    """(decoded upright RGB image, box in its coordinates), where choose_box(width, height) -> box of the full image.

    With a size the image may be a smaller version of the file, in which the box is still `size` pixels a side
    if it was in the file. decoder "simplejpeg" is for such a version of a plain JPEG; all else is Pillow's.
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
            # Neither grey, CMYK nor several pictures in one file.
            if decoder == "simplejpeg" and image.format == "JPEG" and image.mode == "RGB":
                small = decode_small(data, stored, by)
            if small:
                image, shrink = Image.fromarray(small[0]), small[1]
            # draft takes the greatest of 1, 2, 4, 8 by which the file may shrink and keep the size asked for.
            elif drafted := image.draft(None, tuple(max(1, int(side / by)) for side in stored)):
                shrink = stored[0] / drafted[1][2]
        image.load()
        upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        # A side of the smaller version is rounded up: what is beyond the file's last pixel comes first in a mirror.
        ends = FROM_THE_END.get(orientation, (0, 0))
        beyond = [end * (side - whole / shrink) for end, side, whole in zip(ends, upright.size, full, strict=True)]
        box = tuple(edge / shrink + extra for edge, extra in zip(box, beyond * 2, strict=True))
        return _to_rgb(upright, alpha), box


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF beside sound pixels: not turned
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
    except Exception as error:  # Pillow's decoders raise many kinds for damaged input; to a reader they are one
        raise RecordError("corrupt image", f"{type(error).__name__}: {error}") from error
