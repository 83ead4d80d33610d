"""The parts that towers are made of: linear maps, norms, MLP, patch embedding. Attention is in attention.py.

Parameters are float32. Matrices are multiplied in `dtype`; sums inside a product and the statistics of norms are
always float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clipjax.models.activations import activate
from clipjax.models.layer_norm import layer_norm
from clipjax.models.on_cpu import sum_of_products


class Linear(nn.Module):
    """y = x @ kernel + bias on the last axis; kernel [in, features] float32.

    All leading axes are flattened: XLA:CPU multiplies two-dimensional operands about a fifth faster than
    batched ones, and elsewhere the reshape is free.
    """

    features: int
    kernel_init: Callable
    use_bias: bool = True
    bias_init: Callable = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = dot(x.reshape(-1, x.shape[-1]), kernel, self.dtype)
        if self.use_bias:
            y = add_bias(y, self.param("bias", self.bias_init, (self.features,)))
        return y.reshape(*x.shape[:-1], self.features)


class Weights(nn.Module):
    """A kernel and a bias, declared but not used: for what is more than one product.

    Returns both, float32. bias_shape: None, and the bias is None.
    """

    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...] | None
    kernel_init: Callable
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param("kernel", self.kernel_init, self.kernel_shape)
        return kernel, None if self.bias_shape is None else self.param("bias", self.bias_init, self.bias_shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dot(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [n, in] @ kernel [in, ...] -> [n, ...] in dtype, accumulated in float32.

    The kernel's gradient leaves the product in float32, not rounded to dtype, and is summed over devices in float32.
    """
    return _rounded_product(x.astype(dtype), kernel.astype(dtype), ((1,), (0,)))


def _dot_forward(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> tuple:
    return dot(x, kernel, dtype), (x, kernel)


def _dot_backward(dtype: jnp.dtype, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    outputs = tuple(range(1, dy.ndim))
    dx = _rounded_product(dy, kernel.astype(dtype), (outputs, outputs)).astype(x.dtype)
    return dx, sum_of_products(x.astype(dtype), dy).astype(kernel.dtype)


dot.defvjp(_dot_forward, _dot_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dots(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    """dot(x, kernel[:, i], dtype) for every i of kernel [in, count, out].

    Its gradients are written for the layouts of fused attention. On a TPU each is one product for all i, which is
    faster if the results' gradients already lie in one array, as flash_attention's do. On a GPU the second and third
    product of x's gradient add to the result of the one before.
    """
    return tuple(dot(x, kernel[:, i], dtype) for i in range(kernel.shape[1]))


def _dots_backward(dtype: jnp.dtype, saved: tuple, dys: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    def at_once(x: jax.Array, kernel: jax.Array, *dys: jax.Array) -> tuple[jax.Array, jax.Array]:
        dy = jnp.stack(dys)
        dx = _product(dy, kernel.astype(dtype), ((0, 2), (1, 2))).astype(x.dtype)
        return dx, _product(x.astype(dtype), dy, ((0,), (1,))).astype(kernel.dtype)

    def one_by_one(x: jax.Array, kernel: jax.Array, *dys: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = [_dot_backward(dtype, (x, kernel[:, i]), dy) for i, dy in enumerate(dys)]
        return sum(dx for dx, _ in parts), jnp.stack([dkernel for _, dkernel in parts], axis=1)

    def in_a_chain(x: jax.Array, kernel: jax.Array, *dys: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx, dkernels = None, []
        for i, dy in enumerate(dys):
            part, dkernel = _dot_backward(dtype, (x, kernel[:, i]), dy)
            # XLA folds an addition into a product only if that product has none yet, and looks at the left one first.
            dx = part if dx is None else part + dx
            dkernels.append(dkernel)
        return dx, jnp.stack(dkernels, axis=1)

    return jax.lax.platform_dependent(*saved, *dys, tpu=at_once, cuda=in_a_chain, default=one_by_one)


dots.defvjp(lambda x, kernel, dtype: (dots(x, kernel, dtype), (x, kernel)), _dots_backward)


def _rounded_product(a: jax.Array, b: jax.Array, contract: tuple) -> jax.Array:
    """_product in the type of a and b.

    A GPU's libraries round what they accumulated in float32 as they write it, and add a bias and a residual before
    that. A float32 result would go to memory at twice the size, for another kernel to round.
    """

    def rounded(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=a.dtype)

    def default(a: jax.Array, b: jax.Array) -> jax.Array:
        return _product(a, b, contract).astype(a.dtype)

    if a.dtype == jnp.float32:
        return _product(a, b, contract)
    return jax.lax.platform_dependent(a, b, cuda=rounded, rocm=rounded, default=default)


def _product(a: jax.Array, b: jax.Array, contract: tuple) -> jax.Array:
    return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y [n, ...] + bias [...], in y's dtype; the bias's gradient is a product with ones, accumulated in float32."""
    return y + bias.astype(y.dtype)


def _add_bias_backward(bias: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    # A matrix unit sums many rows several times faster than vector units do. Eight rows of ones fill a register; the
    # compiler would turn a product with one row back into a sum.
    def product(dy: jax.Array) -> jax.Array:
        return _product(jnp.ones((8, dy.shape[0]), dy.dtype), dy, ((1,), (0,)))[0]

    # A GPU sums in the kernel that makes dy. For products with ones, XLA copies the gradients of many layers together.
    def plain_sum(dy: jax.Array) -> jax.Array:
        return dy.sum(0, dtype=jnp.float32)

    summed = jax.lax.platform_dependent(dy, cuda=plain_sum, rocm=plain_sum, default=product)
    return dy, summed.astype(bias.dtype)


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), bias), _add_bias_backward)


def constrain(x: jax.Array, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """x with the given sharding; None: x.

    Without it, the compiler may split activations the way FSDP splits the weights, and sum over devices what each
    device could compute alone.
    """
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32, returned in x's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return layer_norm(x, scale, bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (1910.07467), computed in float32, returned in x's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        y = x.astype(jnp.float32)
        return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * scale).astype(x.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}


class Mlp(nn.Module):
    """Two matrices with an activation between them. With a gate there are three: down(f(gate(x)) * up(x)) (2002.05202).

    gate: the name of f, a row of ACTIVATIONS; "" for no gate. norm, first_norm: make the norms before the last matrix
    and before the first; None: there is none.
    """

    mlp_dim: int
    activation: str
    up_init: Callable
    down_init: Callable
    bias_init: Callable
    dtype: jnp.dtype
    gate: str = ""
    norm: Callable | None = None
    first_norm: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x if self.first_norm is None else self.first_norm(name="ln_first")(x)

        def widen(name: str) -> jax.Array:
            y = Linear(self.mlp_dim, self.up_init, bias_init=self.bias_init, dtype=self.dtype, name=name)(x)
            return checkpoint_name(y, "mlp_up")

        y = widen("up")
        y = activate(self.gate, widen("gate")) * y if self.gate else activate(self.activation, y)
        if self.norm is not None:
            y = self.norm(name="ln")(y)
        return Linear(x.shape[-1], self.down_init, bias_init=self.bias_init, dtype=self.dtype, name="down")(y)


class PatchEmbed(nn.Module):
    """Image [B, H, W, C] -> patches [B, (H/p)(W/p), width] as one matrix product (a convolution with stride p).

    Rows and columns beyond the last whole patch are dropped (VALID, as So400m/14 at 384 needs). The kernel's rows
    run over patch row, patch column, channel.
    """

    patch_size: int
    width: int
    use_bias: bool
    kernel_init: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        p = self.patch_size
        batch, h, w, channels = image.shape[0], image.shape[1] // p, image.shape[2] // p, image.shape[3]
        patches = image[:, : h * p, : w * p].reshape(batch, h, p, w, p, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, h * w, p * p * channels)
        kernel = self.param("kernel", self.kernel_init, (p * p * channels, self.width))
        y = dot(patches.reshape(-1, patches.shape[-1]), kernel, self.dtype)
        if self.use_bias:
            y = add_bias(y.reshape(-1, self.width), self.param("bias", nn.initializers.zeros, (self.width,)))
        return y.reshape(batch, h * w, self.width)
