"""A decoded image of any size -> the square that a tower sees, by the rules of each family."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipjax.config import PixelConfig

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# An image that would be scaled to more pixels than this many squares is cropped first. That costs one level in some
# pixels, because Pillow stores a box's corners as float32.
MAX_SCALED = 16

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def to_square(image: Image.Image, size: int, pixels: PixelConfig) -> np.ndarray:
    """RGB image -> [size, size, 3] uint8 by pixels.resize.

    "squash" scales both sides to size (SigLIP), or to pixels.scale_to and then cuts out the centre (ALIGN).
    "center_crop" scales the shorter side and cuts out the centre, as torchvision's Resize and CenterCrop (CLIP). "pad"
    scales the longer side and fills the rest, as open_clip's resize mode "longest".
    """
    if pixels.resize == "pad":
        return pad(image, size, pixels)
    scale_to = pixels.scale_to or size
    if pixels.resize == "squash":
        scaled = (scale_to, scale_to)
    else:
        short = min(image.size)
        scaled = tuple(int(side * scale_to / short) for side in image.size)
    left, top = center(scaled, size, pixels.center)
    if pixels.antialias and scaled[0] * scaled[1] <= MAX_SCALED * size**2:
        array = np.asarray(image.resize(scaled, FILTERS[pixels.interpolation]))
        return array[top : top + size, left : left + size]
    x, y = (whole / side for whole, side in zip(image.size, scaled, strict=True))
    box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
    return resize(image, (size, size), box, pixels)


def resize(image: Image.Image, size: tuple[int, int], box: Box, pixels: PixelConfig) -> np.ndarray:
    """The box of an RGB image, scaled to size (width, height) -> [height, width, 3] uint8.

    The filter sees the image beyond the box's border.
    """
    if not pixels.antialias:
        return sample_bilinear(np.asarray(image), size, box)
    return np.asarray(image.resize(size, FILTERS[pixels.interpolation], box=box))


def center(scaled: tuple[int, int], size: int, rounding: str) -> tuple[int, int]:
    """(left, top) of the size x size square in the centre of a scaled image (width, height).

    Half of an odd margin is rounded to the even number ("round", torchvision's CenterCrop) or down ("floor",
    transformers).
    """
    halve = round if rounding == "round" else int
    left, top = (halve((side - size) / 2) for side in scaled)
    return left, top


def pad(image: Image.Image, size: int, pixels: PixelConfig) -> np.ndarray:
    """[size, size, 3] uint8: the longer side scaled to size, the rest filled with pixels.fill."""
    ratio = max(image.size) / size
    # However long the image, its shorter side keeps one pixel.
    width, height = (max(1, round(side / ratio)) for side in image.size)
    canvas = np.full((size, size, 3), pixels.fill, np.uint8)
    left, top = (size - width) // 2, (size - height) // 2
    scaled = image.resize((width, height), FILTERS[pixels.interpolation])
    canvas[top : top + height, left : left + width] = np.asarray(scaled)
    return canvas


def sample_bilinear(image: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """image [H, W, 3] uint8 -> [height, width, 3] uint8, from the four neighbours of each sample's centre at any scale.

    Fractions are cut off: tf.image.resize(antialias=False) and a cast, as big_vision's resize does by default.
    """

    def neighbours(low: float, high: float, length: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = low + (np.arange(count, dtype=np.float32) + 0.5) * np.float32((high - low) / count) - 0.5
        first = np.floor(at)
        ends = (np.clip(first + step, 0, length - 1).astype(int) for step in (0, 1))
        return *ends, (at - first).astype(np.float32)

    top, bottom, down = neighbours(box[1], box[3], image.shape[0], size[1])
    left, right, along = neighbours(box[0], box[2], image.shape[1], size[0])
    rows = np.stack([image[top], image[bottom]]).astype(np.float32)
    sides = rows[:, :, left] + (rows[:, :, right] - rows[:, :, left]) * along[:, None]
    return (sides[0] + (sides[1] - sides[0]) * down[:, None, None]).astype(np.uint8)
