"""Pixels as towers take them, made on the device: uint8 crosses the bus, not float32."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize_pixels(
    image: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """(image / 255 - mean) / std per channel; image [B, H, W, 3] uint8 -> [B, H, W, 3] dtype."""
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (image.astype(jnp.float32) * scale - shift).astype(dtype)
