"""Attention of one query an example, for which neither keys nor values are made.

A head's logits are q . (x Wk) = (q Wk^T) . x, and its result is sum(w (x Wv)) = sum(w x) Wv: instead of multiplying all
rows of x by two matrices, q and the one result are multiplied. Multi-head latent attention decodes in this form
(DeepSeek-V2, 2405.04434, section 2.1.2).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.models.layers import constrain
from clipjax.models.on_cpu import in_rows


def attend_once(
    q: jax.Array,
    x: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array | None,
    dtype: jnp.dtype,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """softmax(q (x key)^T / sqrt(d)) (x value); q [batch, heads, d], x [batch, length, width] -> [batch, heads, d].

    key, value: matrices [width, heads, d] float32. A bias of the keys adds the same number to all logits of a query,
    and so changes nothing; one of the values may be added to the result, as the weights sum to 1. seen: [batch, length]
    bool, the rows that may be seen; None: all. An example in which there are none attends to all rows equally.
    sharding: of the examples. Heads are split over "tensor", like the matrices that make them, if it divides them.
    """
    # Otherwise FSDP's split of the matrices' widths would spread to what is multiplied by them.
    heads = sharding
    if sharding is not None and q.shape[1] % sharding.mesh.shape["tensor"] == 0:
        heads = NamedSharding(sharding.mesh, P(*sharding.spec, "tensor"))
    x = constrain(x.astype(dtype), sharding)
    with jax.named_scope("qkv"):
        wide = constrain(widen(constrain(q, heads) * q.shape[-1] ** -0.5, key, dtype), heads)
    mixed = constrain(mixed_rows(wide, x, jnp.ones((1, 1), bool) if seen is None else seen), heads)
    with jax.named_scope("qkv"):
        return constrain(narrow(mixed, value, dtype), heads)


@jax.custom_vjp
def mixed_rows(wide: jax.Array, x: jax.Array, seen: jax.Array) -> jax.Array:
    """softmax(wide x^T) x; wide [batch, heads, width], x [batch, length, width] of one dtype -> wide's shape and dtype.

    seen: [batch, length], or [1, 1] for all, bool. The gradient of x, which is both keys and values, is one product.
    """
    return _mixed_forward(wide, x, seen)[0]


def _mixed_forward(wide: jax.Array, x: jax.Array, seen: jax.Array) -> tuple:
    logits = _similarities(wide, x)
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, jnp.finfo(jnp.float32).min), axis=-1)
    return _sums("bhl,blw->bhw", weights.astype(x.dtype), x).astype(x.dtype), (wide, x, seen, weights)


def _mixed_backward(saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    wide, x, seen, weights = saved
    dweights = _similarities(dy, x)
    dlogits = weights * (dweights - (dweights * weights).sum(-1, keepdims=True))
    dlogits = jnp.where(seen[:, None], dlogits, 0).astype(x.dtype)
    # Two axes, heads and the two uses of x, so that heads stay where "tensor" has them.
    by_row, rows = jnp.stack([dlogits, weights.astype(x.dtype)], axis=1), jnp.stack([wide, dy], axis=1)

    def rounded(by_row: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.einsum("bchl,bchw->blw", by_row, rows, preferred_element_type=x.dtype)

    def on_cpu(by_row: jax.Array, rows: jax.Array) -> jax.Array:
        return _sums("blch,bchw->blw", in_rows(by_row.transpose(0, 3, 1, 2)), rows).astype(x.dtype)

    def default(by_row: jax.Array, rows: jax.Array) -> jax.Array:
        return _sums("bchl,bchw->blw", by_row, rows).astype(x.dtype)

    forms = dict(cuda=rounded, rocm=rounded, cpu=on_cpu, default=default)
    dx = jax.lax.platform_dependent(by_row, rows, **forms)
    return _sums("bhl,blw->bhw", dlogits, x).astype(wide.dtype), dx, None


mixed_rows.defvjp(_mixed_forward, _mixed_backward)


def _similarities(a: jax.Array, x: jax.Array) -> jax.Array:
    """a [batch, heads, width], x [batch, length, width] -> [batch, heads, length] float32."""

    def on_cpu(a: jax.Array, x: jax.Array) -> jax.Array:
        return _sums("bhw,blw->bhl", in_rows(a), x)  # otherwise a lies as the product that made it liked best

    return jax.lax.platform_dependent(a, x, cpu=on_cpu, default=lambda a, x: _sums("bhw,blw->bhl", a, x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def widen(q: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """q [batch, heads, d], kernel [width, heads, d] -> [batch, heads, width] in dtype, accumulated in float32.

    The gradients of kernels leave their products in float32, as in layers.dot.
    """
    return _sums("bhd,whd->bhw", q.astype(dtype), kernel.astype(dtype)).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def narrow(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [batch, heads, width], kernel [width, heads, d] -> [batch, heads, d]; see widen."""
    return _sums("bhw,whd->bhd", x.astype(dtype), kernel.astype(dtype)).astype(dtype)


def _widen_backward(dtype: jnp.dtype, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, kernel = saved
    dkernel = _sums("bhw,bhd->whd", dy, q.astype(dtype))
    return narrow(dy, kernel, dtype).astype(q.dtype), dkernel.astype(kernel.dtype)


def _narrow_backward(dtype: jnp.dtype, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dkernel = _sums("bhw,bhd->whd", x.astype(dtype), dy)
    return widen(dy, kernel, dtype).astype(x.dtype), dkernel.astype(kernel.dtype)


widen.defvjp(lambda q, kernel, dtype: (widen(q, kernel, dtype), (q, kernel)), _widen_backward)
narrow.defvjp(lambda x, kernel, dtype: (narrow(x, kernel, dtype), (x, kernel)), _narrow_backward)


def _sums(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
