"""Pixels as towers take them. They are normalised on the device, so that uint8 crosses the bus, not float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Patches(NamedTuple):
    """What a tower with a patch budget reads instead of [B, H, W, 3]; see clipjax.data.images.naflex."""

    pixels: jax.Array  # [B, N, patch_size^2 * 3], over row, column, channel of a patch
    spatial_shape: jax.Array  # [B, 2] int32: rows and columns of patches, at least 1; the rest of N is padding


def image_of(batch: dict[str, jax.Array]) -> jax.Array | Patches:
    """The images of a batch: [B, H, W, 3] uint8, or Patches if the batch has spatial shapes."""
    return Patches(batch["image"], batch["spatial_shape"]) if "spatial_shape" in batch else batch["image"]


def normalize_pixels(
    image: jax.Array | Patches, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype = jnp.float32
) -> jax.Array | Patches:
    """(image / 255 - mean) / std per channel; image [..., n * 3] uint8, channel fastest -> the same shape in dtype."""
    if isinstance(image, Patches):
        return image._replace(pixels=normalize_pixels(image.pixels, mean, std, dtype))
    mean, std = (jnp.tile(jnp.asarray(a, jnp.float32), image.shape[-1] // 3) for a in (mean, std))
    scale, shift = 1.0 / (255.0 * std), mean / std
    return (image.astype(jnp.float32) * scale - shift).astype(dtype)
