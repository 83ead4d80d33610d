"""The activations of MLPs, by the names that configurations use."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # openai/CLIP clip/model.py
    "silu": jax.nn.silu,  # of a gate
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(name: str, x: jax.Array) -> jax.Array:
    """ACTIVATIONS[name](x). Its gradient needs x alone.

    On a GPU, the backward pass computes a tanh or sigmoid of x again, instead of reading what the forward pass would
    have to write. So cuBLAS can apply gelu_tanh as it writes x.
    """
    return ACTIVATIONS[name](x)


def _activate_backward(name: str, x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    def pull(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(ACTIVATIONS[name], x)[1](dy)[0]

    def again(x: jax.Array, dy: jax.Array) -> jax.Array:
        # Behind the barrier, the compiler does not see that the forward pass computed the same.
        return pull(jax.lax.optimization_barrier(x), dy)

    return (jax.lax.platform_dependent(x, dy, cuda=again, rocm=again, default=pull),)


activate.defvjp(lambda name, x: (ACTIVATIONS[name](x), x), _activate_backward)
