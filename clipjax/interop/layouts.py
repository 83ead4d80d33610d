"""How other libraries store one of our arrays: pairs of NumPy functions, each the inverse of the other.

A layout only moves numbers, so it maps gradients too, and a round trip is equal bit for bit. Where our array has a
layer axis, a layout is given one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How a parameter is laid out in a file: a function for reading it, and its reverse for writing."""

    read: Callable[[list[np.ndarray]], np.ndarray]  # their arrays, in the order of Tensor.theirs -> ours
    write: Callable[[np.ndarray], list[np.ndarray]]  # ours -> theirs, in the same order


same = Layout(lambda theirs: theirs[0], lambda ours: [ours])
# torch.nn.Linear's [out, in] <-> our kernel [in, out].
linear = Layout(lambda theirs: theirs[0].T, lambda ours: [ours.T])
# A convolution's OIHW (PyTorch) <-> HWIO (Flax).
conv = Layout(lambda theirs: theirs[0].transpose(2, 3, 1, 0), lambda ours: [ours.transpose(3, 2, 0, 1)])
# q, k and v as three linear maps of PyTorch <-> our kernel [in, 3, width]; their biases <-> our bias [3, width].
qkv_kernel = Layout(lambda theirs: np.stack([w.T for w in theirs], 1), lambda ours: [ours[:, i].T for i in range(3)])
qkv_bias = Layout(np.stack, list)
# torch.nn.MultiheadAttention's in_proj_weight [3 width, in] <-> [in, 3, width]; in_proj_bias [3 width] <-> [3, width].
in_proj_kernel = Layout(
    lambda theirs: theirs[0].reshape(3, -1, theirs[0].shape[1]).transpose(2, 0, 1),
    lambda ours: [ours.transpose(1, 2, 0).reshape(-1, ours.shape[0])],
)
in_proj_bias = Layout(lambda theirs: theirs[0].reshape(3, -1), lambda ours: [ours.reshape(-1)])


def reshape(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Layout:
    """The same numbers in the same order; one size of each shape may be -1."""
    return Layout(lambda arrays: arrays[0].reshape(ours), lambda array: [array.reshape(theirs)])


def patch_conv(patch_size: int) -> Layout:
    """A patch embedding as a convolution, OIHW <-> our kernel [patch row * patch column * channel, width]."""

    def read(theirs: list[np.ndarray]) -> np.ndarray:
        return theirs[0].transpose(2, 3, 1, 0).reshape(-1, theirs[0].shape[0])

    def write(ours: np.ndarray) -> list[np.ndarray]:
        return [ours.reshape(patch_size, patch_size, -1, ours.shape[-1]).transpose(3, 2, 0, 1)]

    return Layout(read, write)
