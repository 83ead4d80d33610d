"""LayerNorm as each compiler computes it in the fewest passes over memory. One trace serves every platform.

TPU: what automatic differentiation gives. CPU: a written-out gradient with two sums along rows and two along columns.
GPU, for 16-bit floats: one kernel forward and two backward. XLA fuses the forward pass into one kernel only if the
variance is the mean of (x - mean)^2, and if nothing else reads the mean or the variance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last axis, computed in float32, returned in x's dtype; scale and bias [width] float32.

    Its gradient is that of float64 to within rounding for rows whose mean is up to a hundred standard deviations. In
    16-bit floats on a GPU, and on a CPU, that of nearly constant rows is rounded more coarsely, but bounded on a GPU.
    """
    return _forward(x, scale, bias, eps)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> tuple:
    y, differentiated, statistics = jax.vjp(functools.partial(_normalised, eps), x, scale, bias, has_aux=True)
    gpu = _on_gpus(x, functools.partial(_one_kernel, eps))
    result = jax.lax.platform_dependent(x, scale, bias, default=lambda *_: y, **gpu)
    return result, (differentiated, x, scale, *statistics)


def _normalised(eps: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple:
    """The result, and (mean, 1 / standard deviation) of the rows."""
    y = x.astype(jnp.float32)
    mean, factor = (_in_two_passes if x.dtype == jnp.float32 else _in_one_pass)(y, eps)
    return ((y - mean) * factor * scale + bias).astype(x.dtype), (mean, factor)


def _one_kernel(eps: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    mean, factor = _in_two_passes(y, eps)
    return ((y - mean) * factor * scale + bias).astype(x.dtype)


def _in_two_passes(y: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """(mean, 1 / standard deviation) of the rows of y, float32."""
    mean = y.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + eps)


def _in_one_pass(y: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """_in_two_passes, for values that were rounded to 16 bits, which far exceeds what the difference of squares loses.

    That is unless a row is nearly constant: its mean a thousand times its standard deviation.
    """
    mean = y.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(y).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    return mean, jax.lax.rsqrt(variance + eps)


def _backward(eps: float, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    def on_cpu(_, x: jax.Array, scale: jax.Array, mean: jax.Array, factor: jax.Array, dy: jax.Array) -> tuple:
        normalised = (x.astype(jnp.float32) - mean) * factor
        dy = dy.astype(jnp.float32)
        g = dy * scale
        across, along = g.mean(-1, keepdims=True), (g * normalised).mean(-1, keepdims=True)
        return gradients(x, normalised, factor, dy, g, across, along)

    def on_gpu(_, x: jax.Array, scale: jax.Array, mean: jax.Array, factor: jax.Array, dy: jax.Array) -> tuple:
        # Behind the barrier, the compiler cannot reuse the forward pass's mean, which it would have to keep in memory.
        y = jax.lax.optimization_barrier(x).astype(jnp.float32)
        mean, factor = _in_one_pass(y, eps)
        # The difference of squares may find no variance in a nearly constant row. The gradient grows with factor^3.
        factor = jnp.minimum(factor, 1024.0 / jnp.abs(mean))
        dy = dy.astype(jnp.float32)
        g = dy * scale
        across = g.mean(-1, keepdims=True)
        # (g * normalised).mean(), from sums that need no mean: one pass has them all.
        along = ((g * y).mean(-1, keepdims=True) - mean * across) * factor
        return gradients(x, (y - mean) * factor, factor, dy, g, across, along)

    def gradients(x, normalised, factor, dy, g, across, along) -> tuple:
        rows = tuple(range(x.ndim - 1))
        dx = (factor * (g - across - normalised * along)).astype(x.dtype)
        return dx, (dy * normalised).sum(rows), dy.sum(rows)

    def default(differentiated: Callable, *others: jax.Array) -> tuple:
        return differentiated(others[-1])

    return jax.lax.platform_dependent(*saved, dy, cpu=on_cpu, default=default, **_on_gpus(saved[1], on_gpu))


def _on_gpus(x: jax.Array, function: Callable) -> dict[str, Callable]:
    """Branches of platform_dependent for 16-bit x; {} for float32, whose gradient keeps the more exact statistics."""
    return {} if x.dtype == jnp.float32 else {"cuda": function, "rocm": function}


layer_norm.defvjp(_forward, _backward)
