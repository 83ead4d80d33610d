"""The parts that convolutional towers are made of: convolutions, BatchNorm, average pools, stochastic depth.

Images are [B, H, W, C]. Parameters and running statistics are float32; `dtype` is what convolutions multiply in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clipjax.config import require
from clipjax.models.layers import add_bias, constrain, dot

Pads = tuple[tuple[int, int], tuple[int, int]]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
    """x [B, H, W, C] -> [B, H', W', features]; kernel [k, k, C / groups, features] float32.

    padding: rows and columns of zeros on every side, as PyTorch counts; or ((top, bottom), (left, right)). groups: C
    for a depthwise convolution. A convolution of single pixels is computed as a matrix product.
    """

    features: int
    kernel_size: int
    kernel_init: Callable
    dtype: jnp.dtype
    stride: int = 1
    padding: int | Pads = 0
    groups: int = 1
    use_bias: bool = False
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, p = self.kernel_size, self.padding
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if shape[:2] == (1, 1) and self.stride == 1 and p == 0 and self.groups == 1:
            y = dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], self.dtype).reshape(*x.shape[:-1], self.features)
        else:
            pads = ((p, p), (p, p)) if isinstance(p, int) else p
            y = convolve(x, kernel, self.dtype, self.stride, pads, self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = add_bias(y.reshape(-1, self.features), bias).reshape(y.shape)
        return checkpoint_name(constrain(y, self.activations), "conv")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype, stride: int, pads: Pads, groups: int) -> jax.Array:
    """Convolution in dtype. As in layers.dot, the kernel's gradient is float32, and is summed over devices as such."""
    return _convolve(x.astype(dtype), kernel.astype(dtype), stride, pads, groups)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, groups: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=DIMENSIONS, feature_group_count=groups
    )


def _convolve_forward(x: jax.Array, kernel: jax.Array, *static) -> tuple:
    return convolve(x, kernel, *static), (x, kernel)


def _convolve_backward(dtype: jnp.dtype, stride: int, pads: Pads, groups: int, saved: tuple, dy: jax.Array) -> tuple:
    x, kernel = saved
    cast = kernel.astype(dtype)
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, cast, stride, pads, groups), x.astype(dtype))(dy)
    # The kernel's gradient is a convolution of x with dy in which batch and channels are swapped. The right
    # padding makes it as large as the kernel: strides may have left the last rows of x unread.
    right = [
        ((out - 1) * stride + 1 - size) + (taps - low - 1)
        for out, size, taps, (low, _) in zip(dy.shape[1:3], x.shape[1:3], kernel.shape[:2], pads, strict=True)
    ]
    dkernel = jax.lax.conv_general_dilated(
        x.astype(dtype),
        dy,
        (1, 1),
        [(low, high) for (low, _), high in zip(pads, right, strict=True)],
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=groups,
        preferred_element_type=jnp.float32,
    )
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


convolve.defvjp(_convolve_forward, _convolve_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, computed in float32, returned in x's dtype.

    Parameters scale and bias; running mean and variance in collection "batch_stats". In training, if that collection is
    mutable, it normalises by the batch's statistics and moves the running ones towards them by 1 - momentum. The
    running variance divides by n - 1, as PyTorch's and TensorFlow's fused BatchNorm do. In evaluation, and in a frozen
    tower, it normalises by the running ones. Under jit, the statistics are the global batch's on any mesh.
    """

    eps: float
    momentum: float
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = x.shape[-1:]
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        y = x.astype(jnp.float32)
        if train and self.is_mutable_collection("batch_stats"):
            axes = tuple(range(x.ndim - 1))
            mean = y.mean(axes)
            if x.dtype == jnp.float32:
                var = jnp.square(y - mean).mean(axes)
            else:  # both in one pass over x, as in LayerNorm
                var = jnp.maximum(jnp.square(y).mean(axes) - jnp.square(mean), 0.0)
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                unbiased = var * (n / max(n - 1, 1))
                for running, now in ((running_mean, mean), (running_var, unbiased)):
                    running.value = self.momentum * running.value + (1 - self.momentum) * jax.lax.stop_gradient(now)
        else:
            mean, var = running_mean.value, running_var.value
        return ((y - mean) * (jax.lax.rsqrt(var + self.eps) * scale) + bias).astype(x.dtype)


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> means of size x size pixels, side by side; a window that is not full is dropped."""
    if size == 1:
        return x
    batch, h, w, channels = x.shape[0], x.shape[1] // size, x.shape[2] // size, x.shape[3]
    windows = x[:, : h * size, : w * size].reshape(batch, h, size, w, size, channels)
    return windows.astype(jnp.float32).mean((2, 4)).astype(x.dtype)


def drop_path(module: nn.Module, branch: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth (Huang et al. 1603.09382): an example loses its whole branch with probability rate."""
    if rate == 0 or not train:
        return branch
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, (branch.shape[0],) + (1,) * (branch.ndim - 1))
    return jnp.where(keep, branch / (1 - rate), 0).astype(branch.dtype)


def check_stages(stages: tuple[int, ...], image_size: int, where: str, name: str) -> None:
    """Raises ConfigError unless there are four stages of blocks and the image halves evenly five times."""
    require(
        len(stages) == 4 and min(stages) > 0,
        f"{where}.name='{name}' needs four stages of blocks, such as stages=(3, 4, 6, 3), not stages={stages}.",
    )
    require(
        image_size % 32 == 0,
        f"{where}.image_size={image_size} must be a multiple of 32, the product of the strides of '{name}'.",
    )
