"""Rotary position embeddings: queries and keys are turned by angles proportional to position (RoFormer, 2104.09864)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Rotation = tuple[jax.Array, jax.Array]  # cos and sin of every position's angles, [length, d] or [batch, length, d]


def rotary_1d(length: int, head_dim: int, theta: float) -> Rotation:
    """Positions 0, 1, ... of a text; float32 [length, head_dim]. Raises ValueError for an odd head_dim."""
    return _rotation(np.arange(length)[:, None], head_dim, theta)


def rotary_2d(
    rows: int,
    columns: int,
    head_dim: int,
    theta: float,
    *,
    grid: int = 0,
    prefix: int = 0,
    axes: str = "yx",
    offset: float = 0.0,
) -> Rotation:
    """Patches row by row, after `prefix` tokens that do not turn; float32 [prefix + rows * columns, head_dim].

    Half of the channels turn with the row, half with the column; axes "xy": the column's come first. Rows and columns
    are counted from `offset`. grid > 0: they are scaled to 0 ... grid, so that the angles of a higher resolution stay
    within those of pretraining. Source: EVA-02 (2303.11331), timm models/eva.py; "xy" and offset 1 are the Perception
    Encoder's (2504.13181). Raises ValueError unless head_dim is a multiple of 4.
    """
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) + offset
    places = {"y": y * (grid / rows if grid else 1), "x": x * (grid / columns if grid else 1)}
    places = np.stack([places[axis] for axis in axes], axis=1)
    cos, sin = _rotation(places, head_dim, theta)
    return np.pad(cos, ((prefix, 0), (0, 0)), constant_values=1), np.pad(sin, ((prefix, 0), (0, 0)))


def _rotation(places: np.ndarray, head_dim: int, theta: float) -> Rotation:
    """places [length, axes] -> cos, sin [length, head_dim]: one axis after the other, each angle for two channels."""
    length, axes = places.shape
    if head_dim % (2 * axes):
        raise ValueError(f"Rotary positions need heads of a multiple of {2 * axes} channels, not {head_dim}.")
    bands = head_dim // axes // 2
    frequencies = theta ** -(np.arange(bands) / bands)
    angles = np.repeat(places[:, :, None] * frequencies, 2, axis=-1).reshape(length, head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """x [batch, length, heads, d] with each pair of neighbouring channels turned; computed in float32, in x's dtype."""
    cos, sin = (jnp.asarray(a)[..., None, :] for a in rotation)
    y = x.astype(jnp.float32)
    # (a, b) -> (-b, a) by two shifts, one for even and one for odd channels: no strided access to the last axis.
    even = np.arange(x.shape[-1]) % 2 == 0
    turned = jnp.where(even, -jnp.roll(y, -1, axis=-1), jnp.roll(y, 1, axis=-1))
    return (y * cos + turned * sin).astype(x.dtype)
