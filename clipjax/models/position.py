"""Positions: fixed ones, and learned ones resampled to another resolution or context length (traceable)."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.config import ModelConfig, require

Method = Literal["bicubic", "bilinear", "corners"]


def resample(table: jax.Array, old: tuple[int, int], new: tuple[int, int], method: Method = "bicubic") -> jax.Array:
    """Resamples a table [prefix + rows * columns, width] from grid `old` to `new`; the prefix (class token) stays.

    method: "bicubic", antialiased with half-pixel centres, is open_clip's resize_pos_embed and timm's; "bilinear", the
    same with a triangle, is NaFlex's; "corners", linear between the corners' centres, is big_vision's resample_posemb.
    Raises ConfigError if the table does not have that many positions.
    """
    prefix = len(table) - old[0] * old[1]
    require(0 <= prefix <= 1, f"A table of {len(table)} positions does not fit a grid of {old[0]} x {old[1]} patches.")
    if old == new:
        return table
    grid = jnp.reshape(table[prefix:], (*old, -1))
    rows, columns = (_matrix(a, b, method).astype(np.float32) for a, b in zip(old, new, strict=True))
    grid = jnp.einsum("ij,jkw,lk->ilw", rows, grid, columns, precision="highest")
    return jnp.concatenate([table[:prefix], grid.reshape(-1, table.shape[1]).astype(table.dtype)])


def stretch(table: jax.Array, length: int) -> jax.Array:
    """Text positions [L, width] -> [length, width], linear with half-pixel centres.

    The new length may be longer or shorter, as in open_clip's resize_text_pos_embed.
    """
    old = len(table)
    at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    low = np.minimum(at.astype(int), max(old - 2, 0))
    share = np.float32(at - low)[:, None]
    mixed = table[low] * (1 - share) + table[np.minimum(low + 1, old - 1)] * share
    return table if old == length else mixed.astype(table.dtype)


def resample_positions(params: Any, old: ModelConfig, new: ModelConfig, method: Method = "bicubic") -> Any:
    """Adapts the parameters of model `old` to model `new`, which may differ in image size and context length.

    Only learned positions change.
    """
    params = {side: dict(tree) if isinstance(tree, dict) else tree for side, tree in params.items()}
    image, text = params.get("image", {}), params.get("text", {})
    if "position_embedding" in image:
        grids = [(c.image.image_size // c.image.patch_size,) * 2 for c in (old, new)]
        image["position_embedding"] = resample(image["position_embedding"], *grids, method)
    # A table of num_positions rows (BERT) has enough for every context: its first rows are used as they are.
    stretches = old.text.context_length != new.text.context_length and not getattr(old.text, "num_positions", 0)
    if "position_embedding" in text and stretches:
        table = text["position_embedding"]
        # CoCa's class token has the last position, which no word ever has.
        appended = len(table) - old.text.context_length
        require(0 <= appended <= 1, f"A table of {len(table)} positions does not fit {old.text.context_length} tokens.")
        words = stretch(table[: len(table) - appended], new.text.context_length)
        text["position_embedding"] = jnp.concatenate([words, table[len(table) - appended :]])
    return params


def _matrix(old: int, new: int, method: Method) -> np.ndarray:
    """[new, old] float64: the share of each old position in each new one; rows sum to 1."""
    if method == "corners":
        at = np.arange(new) * (old - 1) / max(new - 1, 1)
        weights = np.maximum(1 - np.abs(np.arange(old) - at[:, None]), 0)
    else:
        scale = old / new
        center = (np.arange(new) + 0.5) * scale - 0.5
        weights = KERNELS[method](np.abs(np.arange(old) - center[:, None]) / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' kernel (1981) of |x|, with the a of Pillow and of torch's antialiased interpolation."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


KERNELS = {"bicubic": _cubic, "bilinear": lambda x: np.maximum(1 - x, 0)}


def sincos_2d(height: int, width: int, dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed position embedding [height * width, dim] float32: sin and cos of x, then of y (MoCo v3, 2104.02057).

    dim: a multiple of 4, at least 8.
    """
    y, x = np.mgrid[:height, :width]
    omega = 1.0 / temperature ** (np.arange(dim // 4) / (dim // 4 - 1))
    x, y = np.outer(x.ravel(), omega), np.outer(y.ravel(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
