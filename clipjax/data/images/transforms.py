"""Encoded image -> uint8 RGB at the size of the tower, on the host: augmented for training, plain for evaluation."""

from __future__ import annotations

import math

import numpy as np

from clipjax.config import AugmentConfig, PixelConfig, require
from clipjax.config.errors import shown
from clipjax.data.images.decode import Picture, open_image, read_box
from clipjax.data.images.resize import Box, resize, to_square


def eval_image(picture: Picture, size: int, pixels: PixelConfig) -> np.ndarray:
    """[size, size, 3] uint8 without augmentation, resized as `pixels` says (to_square). Raises RecordError."""
    return to_square(open_image(picture, alpha=pixels.alpha), size, pixels)


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
    decoder "simplejpeg" takes any number of eighths, "pillow" a half, a quarter or an eighth. Both crop the same box.
    """
    if augment.name == "none":
        array = eval_image(data, size, pixels)
    else:
        choose = lambda width, height: crop_box(width, height, augment, rng)  # noqa: E731
        image, box = read_box(data, choose, size, pixels.alpha, decoder)
        array = resize(image, (size, size), box, pixels)
    return np.ascontiguousarray(array[:, ::-1]) if rng.random() < augment.flip else array


def crop_box(width: int, height: int, augment: AugmentConfig, rng: np.random.Generator) -> Box:
    """A random box of whole pixels, by its share of the area and its aspect ratio.

    torchvision's RandomResizedCrop.get_params: ten tries, then the centre at the nearest allowed ratio.
    """
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


def check_pixels(pixels: PixelConfig, image_size: int) -> None:
    """Refuses pixel options that do not fit each other or the tower's image_size. Raises ConfigError."""
    where = "config.data.pixels"
    for name in ("mean", "std"):
        values = getattr(pixels, name)
        require(len(values) == 3, f"{where}.{name}={shown(values)} needs three numbers (red, green, blue).")
    require(
        pixels.antialias or (pixels.interpolation == "bilinear" and pixels.resize != "pad"),
        f"{where}.antialias=False is bilinear without padding; it does not go with "
        f"interpolation='{pixels.interpolation}' and resize='{pixels.resize}'.",
    )
    require(
        not pixels.scale_to or (pixels.scale_to >= image_size and pixels.resize != "pad"),
        f"{where}.scale_to={pixels.scale_to} must be at least config.model.image.image_size={image_size}, which is "
        "then cut from the centre; 'pad' has nothing to cut.",
    )


def check_augment(augment: AugmentConfig) -> None:
    """Refuses ranges of random crops that are not two ascending numbers above 0. Raises ConfigError."""
    for name in ("scale", "ratio"):
        values = getattr(augment, name)
        require(
            len(values) == 2 and 0 < values[0] <= values[1],
            f"config.data.augment.{name}={shown(values)} must be two numbers above 0, the smaller one first.",
        )
