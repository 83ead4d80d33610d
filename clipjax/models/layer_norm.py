"""LayerNorm as each compiler computes it in the fewest passes over memory. One trace serves every platform.

TPU: what automatic differentiation gives. CPU: a gradient of two sums along rows and two along columns. GPU, for 16-bit
floats: one kernel forward and two backward. XLA fuses the forward pass into one if the variance is a mean of what is
left after the mean, and if nothing else reads either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last axis, computed in float32, returned in x's dtype; scale and bias [width] float32."""
    return _forward(x, scale, bias, eps)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> tuple:
    def default(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return y

    y, differentiated, statistics = jax.vjp(functools.partial(_normalised, eps), x, scale, bias, has_aux=True)
    result = jax.lax.platform_dependent(x, scale, bias, default=default, **_on_gpus(x, _one_kernel(eps)))
    return result, (differentiated, x, scale, *statistics)


def _normalised(eps: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple:
    """The result, and (mean, 1 / standard deviation) of the rows."""
    y = x.astype(jnp.float32)
    if x.dtype == jnp.float32:
        mean = y.mean(-1, keepdims=True)
        factor = jax.lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + eps)
    else:
        mean, factor = _statistics(y, eps)
    return ((y - mean) * factor * scale + bias).astype(x.dtype), (mean, factor)


def _statistics(y: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """(mean, 1 / standard deviation) of the rows of y, float32 but rounded from 16-bit floats, in one pass over them.

    That rounding far exceeds what the difference of squares loses.
    """
    mean = y.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(y).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    return mean, jax.lax.rsqrt(variance + eps)


def _one_kernel(eps: float) -> Callable:
    def normalised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps) * scale + bias).astype(x.dtype)

    return normalised


def _backward(eps: float, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    def on_cpu(_, x: jax.Array, scale: jax.Array, mean: jax.Array, factor: jax.Array, dy: jax.Array) -> tuple:
        normalised = (x.astype(jnp.float32) - mean) * factor
        dy = dy.astype(jnp.float32)
        g = dy * scale
        across, along = g.mean(-1, keepdims=True), (g * normalised).mean(-1, keepdims=True)
        return gradients(x, normalised, factor, dy, g, across, along)

    def on_gpu(_, x: jax.Array, scale: jax.Array, mean: jax.Array, factor: jax.Array, dy: jax.Array) -> tuple:
        # Behind the barrier, the compiler does not see that the forward pass has the mean, which would be kept for it.
        y = jax.lax.optimization_barrier(x).astype(jnp.float32)
        mean, factor = _statistics(y, eps)
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
    """Branches of platform_dependent for 16-bit x; {} for float32, which keeps the more exact statistics."""
    return {} if x.dtype == jnp.float32 else {"cuda": function, "rocm": function}


layer_norm.defvjp(_forward, _backward)
