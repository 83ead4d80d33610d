"""Encoded image -> patches at its own aspect ratio, within a budget (SigLIP 2's NaFlex)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from clipjax.config import AugmentConfig, PatchBudget, PixelConfig
from clipjax.data.images.decode import Picture, open_image, read_box
from clipjax.data.images.resize import Box, resize
from clipjax.data.images.transforms import crop_box

Columns = dict[str, np.ndarray]


def eval_patches(picture: Picture, budget: PatchBudget, pixels: PixelConfig) -> Columns:
    """The whole image: {"image": [N, p * p * 3] uint8, "spatial_shape": [2] int32}, N = max_patches.

    Patches beyond the image are zeros. Raises RecordError.
    """
    image = open_image(picture, alpha=pixels.alpha)
    return _patches(image, (0, 0, *image.size), budget, pixels)


def train_patches(
    data: bytes,
    budget: PatchBudget,
    pixels: PixelConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
    decoder: str = "pillow",
) -> Columns:
    """eval_patches of a crop drawn from rng, at the crop's own aspect ratio. Raises RecordError."""
    if augment.name == "none":
        columns = eval_patches(data, budget, pixels)
    else:
        # No crop needs more pixels on its shorter side than a square that uses the whole budget.
        size = budget.patch_size * math.isqrt(budget.max_patches)
        choose = lambda width, height: crop_box(width, height, augment, rng)  # noqa: E731
        image, box = read_box(data, choose, size, pixels.alpha, decoder)
        columns = _patches(image, box, budget, pixels)
    if rng.random() < augment.flip:
        picture = from_patches(columns, budget.patch_size)
        columns["image"] = to_patches(picture[:, ::-1], budget)
    return columns


def patch_grid(height: float, width: float, budget: PatchBudget) -> tuple[int, int]:
    """(rows, columns) of patches at the largest scale whose sides, rounded up to whole patches, fit the budget.

    Bisects the scale to 1e-5, as transformers' Siglip2ImageProcessor and big_vision's resize_to_sequence do. A side has
    at least one patch.
    """

    def grid(scale: float) -> tuple[int, int]:
        return tuple(max(1, math.ceil(side * scale / budget.patch_size)) for side in (height, width))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= budget.max_patches else (low, middle)
    return grid(low)


def to_patches(picture: np.ndarray, budget: PatchBudget) -> np.ndarray:
    """[rows * p, columns * p, 3] uint8 -> [max_patches, p * p * 3], row by row, then zeros."""
    p = budget.patch_size
    rows, columns = picture.shape[0] // p, picture.shape[1] // p
    patches = picture.reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
    result = np.zeros((budget.max_patches, p * p * 3), np.uint8)
    result[: len(patches)] = patches
    return result


def from_patches(columns: Columns, patch_size: int) -> np.ndarray:
    """The inverse of to_patches: the picture, [rows * p, columns * p, 3] uint8."""
    rows, cols = (int(n) for n in columns["spatial_shape"])
    patches = columns["image"][: rows * cols].reshape(rows, cols, patch_size, patch_size, 3)
    return patches.transpose(0, 2, 1, 3, 4).reshape(rows * patch_size, cols * patch_size, 3)


def _patches(image: Image.Image, box: Box, budget: PatchBudget, pixels: PixelConfig) -> Columns:
    rows, columns = patch_grid(box[3] - box[1], box[2] - box[0], budget)
    size = (columns * budget.patch_size, rows * budget.patch_size)
    picture = resize(image, size, box, pixels)
    return {"image": to_patches(picture, budget), "spatial_shape": np.array([rows, columns], np.int32)}
