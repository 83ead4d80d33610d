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
from clipjax.models.on_cpu import mixtures, pairs


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
    logits = pairs(wide[:, :, None], x[:, :, None])[:, 0]
    if seen is not None:
        logits = jnp.where(seen[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
    mixed = constrain(mixtures(weights[:, None], x[:, :, None])[:, :, 0].astype(dtype), heads)
    with jax.named_scope("qkv"):
        return constrain(narrow(mixed, value, dtype), heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def widen(q: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """q [batch, heads, d], kernel [width, heads, d] -> [batch, heads, width] in dtype, accumulated in float32.

    The gradients of kernels leave their products in float32, as in layers.dot.
    """
    return _product("bhd,whd->bhw", q, kernel, dtype).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def narrow(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [batch, heads, width], kernel [width, heads, d] -> [batch, heads, d]; see widen."""
    return _product("bhw,whd->bhd", x, kernel, dtype).astype(dtype)


def _widen_backward(dtype: jnp.dtype, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, kernel = saved
    return narrow(dy, kernel, dtype).astype(q.dtype), _product("bhw,bhd->whd", dy, q, dtype).astype(kernel.dtype)


def _narrow_backward(dtype: jnp.dtype, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return widen(dy, kernel, dtype).astype(x.dtype), _product("bhw,bhd->whd", x, dy, dtype).astype(kernel.dtype)


widen.defvjp(lambda q, kernel, dtype: (widen(q, kernel, dtype), (q, kernel)), _widen_backward)
narrow.defvjp(lambda x, kernel, dtype: (narrow(x, kernel, dtype), (x, kernel)), _narrow_backward)


def _product(sums: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.einsum(sums, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)
