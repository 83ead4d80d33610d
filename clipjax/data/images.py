"""Encoded image -> uint8 RGB of the tower's size. Pillow, on the host."""

from __future__ import annotations

import io
import math
import struct

import numpy as np
from PIL import Image, ImageOps

from clipjax.config import AugmentConfig, PixelConfig
from clipjax.data.records import RecordError

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MAX_PIXELS = 64 * 1024 * 1024  # decoded RGB of 192 MiB; larger files are refused by their header
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def eval_image(data: bytes, size: int, pixels: PixelConfig) -> np.ndarray:
    """[size, size, 3] uint8 without augmentation. Raises RecordError.

    pixels.resize: "squash" scales both sides to size (SigLIP); "center_crop" scales the shorter side to size
    and cuts the centre (CLIP, torchvision Resize + CenterCrop).
    """
    image = open_image(data, at_least=size)
    if pixels.resize == "center_crop":
        box = center_box(image.width, image.height, size)
    else:
        box = (0, 0, image.width, image.height)
    return np.asarray(image.resize((size, size), FILTERS[pixels.interpolation], box=box))


def train_image(
    data: bytes, size: int, pixels: PixelConfig, augment: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """[size, size, 3] uint8, augmented by draws from rng. Raises RecordError."""
    if augment.name == "none":
        array = eval_image(data, size, pixels)
    else:
        # A crop keeps at least the square root of its area's share of each side, so decode that much more.
        image = open_image(data, at_least=math.ceil(size / math.sqrt(augment.scale[0])))
        box = crop_box(image.width, image.height, augment, rng)
        array = np.asarray(image.resize((size, size), FILTERS[pixels.interpolation], box=box))
    return np.ascontiguousarray(array[:, ::-1]) if rng.random() < augment.flip else array


def open_image(data: bytes, at_least: int) -> Image.Image:
    """A decoded RGB image: EXIF rotation applied, transparency over white, first frame of an animation.

    A JPEG much larger than `at_least` pixels a side is decoded at a half, quarter or eighth of its size.
    Raises RecordError for what is empty, unknown, truncated or larger than MAX_PIXELS.
    """
    if not data:
        raise RecordError("empty image", "the image has zero bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise RecordError("image too large", f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
        image.draft("RGB", (at_least, at_least))
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except RecordError:
        raise
    except Image.DecompressionBombError as error:
        raise RecordError("image too large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise RecordError("not an image", f"none of {', '.join(FORMATS)} ({len(data)} bytes)") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, TypeError) as error:
        raise RecordError("corrupt image", f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        # 16-bit grey: Pillow's own conversion clips instead of scaling.
        grey = np.asarray(image, np.float32)
        return Image.fromarray(np.uint8(np.clip(grey / 257.0, 0, 255) + 0.5)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def center_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """The part of the image that Resize(shorter side = size) and CenterCrop(size) keep, in image coordinates."""
    short = min(width, height)
    scaled_width, scaled_height = round(width * size / short), round(height * size / short)
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    x, y = width / scaled_width, height / scaled_height
    return (left * x, top * y, (left + size) * x, (top + size) * y)


def crop_box(width: int, height: int, augment: AugmentConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random box by area share and aspect ratio, as torchvision RandomResizedCrop.get_params: ten tries, then
    the centre with the nearest allowed ratio."""
    low, high = (math.log(r) for r in augment.ratio)
    for _ in range(10):
        area = width * height * rng.uniform(*augment.scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return (left, top, left + w, top + h)
    ratio = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)
