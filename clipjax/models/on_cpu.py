"""Products, most of them of gradients, in the form that XLA:CPU computes fastest. Other platforms get the plain ones.

XLA:CPU multiplies bfloat16 as such only where the left side lies in rows along which it is summed, and the result is
float32; every other bfloat16 product is computed in float32, whose operands it converts first. A processor with
bfloat16 units then takes about three times as long. The products below are of that one form. The choice is made when a
program is lowered, so that one trace serves every platform. docs/cpu_speed.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint


def sum_of_products(x: jax.Array, dy: jax.Array) -> jax.Array:
    """x [n, in] and dy [n, ...] of one dtype -> x^T dy [in, ...] float32, the gradient of a matrix."""

    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        return _product(x, dy, ((0,), (0,)))

    def written_out(x: jax.Array, dy: jax.Array) -> jax.Array:
        return _product(in_rows(x.T), dy, ((1,), (0,)))

    if x.dtype != jnp.bfloat16:
        return plain(x, dy)
    return jax.lax.platform_dependent(x, dy, cpu=written_out, default=plain)


@jax.custom_vjp
def pairs(x: jax.Array, y: jax.Array) -> jax.Array:
    """Products of all pairs: x [batch, l, heads, d], y [batch, m, heads, d] -> [batch, heads, l, m] float32."""
    return jnp.einsum("blhd,bmhd->bhlm", x, y, preferred_element_type=jnp.float32)


@jax.custom_vjp
def mixtures(weights: jax.Array, y: jax.Array) -> jax.Array:
    """Sums of y by weights: [batch, heads, l, m], [batch, m, heads, d] -> [batch, l, heads, d] float32."""
    return jnp.einsum("bhlm,bmhd->blhd", weights, y, preferred_element_type=jnp.float32)


def _pairs_backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    def on_cpu(x: jax.Array, y: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = g.astype(x.dtype)
        return mixtures(g, y).astype(x.dtype), _transposed_mixtures(g, x).astype(y.dtype)

    return jax.lax.platform_dependent(*saved, g, cpu=on_cpu, default=_differentiated(pairs.fun))


def _mixtures_backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    def on_cpu(weights: jax.Array, y: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = g.astype(y.dtype)
        return pairs(g, y).astype(weights.dtype), _transposed_mixtures(weights, g).astype(y.dtype)

    return jax.lax.platform_dependent(*saved, g, cpu=on_cpu, default=_differentiated(mixtures.fun))


def _transposed_mixtures(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Sums over l: [batch, heads, l, m], [batch, l, heads, d] -> [batch, m, heads, d] float32."""
    columns = in_rows(x.transpose(0, 2, 3, 1))
    return _product(columns, weights, ((3,), (2,)), ((0, 1), (0, 1))).transpose(0, 3, 1, 2)


def _differentiated(fun: Callable) -> Callable:
    return lambda x, y, g: jax.vjp(fun, x, y)[1](g)


pairs.defvjp(lambda x, y: (pairs(x, y), (x, y)), _pairs_backward)
mixtures.defvjp(lambda weights, y: (mixtures(weights, y), (weights, y)), _mixtures_backward)


@jax.custom_jvp
def in_rows(x: jax.Array) -> jax.Array:
    """x, stored so that its last axis is contiguous, which the compiler would not do with a transposed operand."""
    return _mapped_in_rows(x)


def _local_in_rows(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


in_rows.defjvp(lambda primals, tangents: (in_rows(*primals), *tangents))

# On a mesh, each device stores its own part. XLA does not know how to partition a layout constraint: it would gather x,
# the activations of the global batch, on every device.
_partitioned_in_rows = custom_partitioning(_local_in_rows)
_partitioned_in_rows.def_partition(
    partition=lambda mesh, _, result: (mesh, _local_in_rows, result.sharding, (result.sharding,)),
    sharding_rule="... -> ...",
)

_mapped_in_rows = jax.custom_batching.custom_vmap(_partitioned_in_rows)  # custom_partitioning has no rule for vmap
_mapped_in_rows.def_vmap(lambda _, mapped, x: (_mapped_in_rows(x), True))


def _product(a: jax.Array, b: jax.Array, contract: tuple, batch: tuple = ((), ())) -> jax.Array:
    return jax.lax.dot_general(a, b, (contract, batch), preferred_element_type=jnp.float32)
