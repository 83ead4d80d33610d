"""Attention in cuDNN's fused kernels (Nvidia GPUs): the [length, keys] weights of a head never reach memory.

jax.nn.dot_product_attention calls them, forward and backward. This module says where they can be called and prepares
what they take: even lengths, and masks as numbers of keys or as a bias.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

MAX_HEAD_WIDTH = 128  # of every GPU from Ampere on; Hopper's kernels take 256
LEAST_CAPABILITY = 8.0  # Ampere
HIDDEN = -(2.0**41)  # added to a masked key's logit; float32 then loses the logit itself: all masked keys are equal


def takes(q: jax.Array, k: jax.Array) -> bool:
    """Whether the kernels take q [batch, length, heads, d] and k [batch, keys, heads, d]; both are 16-bit floats."""
    half = q.dtype in (jnp.bfloat16, jnp.float16) and q.dtype == k.dtype
    return half and q.shape[-1] % 8 == 0 and q.shape[-1] <= MAX_HEAD_WIDTH and q.shape[1] > 1 and k.shape[1] > 1


def usable_on(device: jax.Device) -> bool:
    """Whether this installation can call the kernels on a GPU, present or only compiled for; warns once if not."""
    if "rocm" in str(getattr(device.client, "platform_version", "")).lower():
        return _usable(device.device_kind, "which cuDNN does not run on")
    capability = getattr(device, "compute_capability", None)
    if capability and float(capability) < LEAST_CAPABILITY:
        return _usable(device.device_kind, f"of compute capability {capability}, where {LEAST_CAPABILITY} is needed")
    return _usable(device.device_kind, "")


@functools.cache
def _usable(kind: str, fault: str) -> bool:
    if not fault:
        example = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
        try:
            jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), *[example] * 3)
        except RuntimeError as error:  # NotImplementedError is one
            fault = f"for which JAX cannot call cuDNN: {str(error).strip().rstrip('.')}"
    if fault:
        logging.warning("Attention is computed without fused kernels on this GPU (%s), %s.", kind, fault)
    return not fault


def cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    keys: int = 0,
    sharding: NamedSharding | None = None,
    implementation: str = "cudnn",
) -> jax.Array:
    """attention() of 16-bit q [batch, length, heads, d], k and v [batch, keys, heads, d], with its masks.

    mask: [batch, keys] bool, or [batch] int32: how many keys are seen, from the first on; 0 means all. With causal, a
    mask has to show the first key. keys: how many keys there are, if rows of padding follow them; 0: all. Odd lengths
    are padded, which costs copies: pad what q, k and v are computed from, where possible, and pass `keys`. sharding: of
    the examples; heads are split over "tensor".
    implementation: "xla" computes the same function anywhere, to test against.
    """
    local = functools.partial(_local, causal=causal, keys=keys or k.shape[1], implementation=implementation)
    if sharding is None or sharding.mesh.size == 1:
        return local(q, k, v, mask)
    # The compiler could divide the kernels by itself; told how, it cannot come to gather their arrays.
    heads, examples = P(*sharding.spec, None, "tensor"), P(*sharding.spec)
    args, specs = (q, k, v), (heads,) * 3
    if mask is not None:
        args, specs = (*args, mask), (*specs, examples)
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=specs, out_specs=heads, check_vma=False)(*args)


def even(x: jax.Array, axis: int = 1) -> jax.Array:
    """x with a row of zeros at the end of an odd axis."""
    return jnp.pad(x, [(0, x.shape[i] % 2 if i == axis else 0) for i in range(x.ndim)])


def _local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool,
    keys: int,
    implementation: str,
) -> jax.Array:
    """cudnn_attention of one device's arrays.

    A padded query is computed like any other, from whatever its row holds: its result is finite, and is cut off here or
    by the caller, so that no gradient comes back.
    """
    length = q.shape[1]
    q, k, v = even(q), even(k), even(v)
    padded, hidden = k.shape[1], {}
    if mask is not None and mask.ndim == 2:
        seen = jnp.where(mask, 0.0, HIDDEN).astype(q.dtype)
        # Further down than a masked key: where every key is masked, attention is to all of them, but not to padding.
        seen = jnp.pad(seen, ((0, 0), (0, padded - mask.shape[1])), constant_values=2 * HIDDEN)
        hidden["bias"] = jnp.broadcast_to(seen[:, None, None, :], (q.shape[0], 1, q.shape[1], padded))
    elif mask is not None:
        hidden["key_value_seq_lengths"] = jnp.where(mask > 0, jnp.minimum(mask, keys), keys).astype(jnp.int32)
    elif keys < padded and not causal:  # causality hides the padding behind all queries from them
        hidden["key_value_seq_lengths"] = jnp.full(q.shape[:1], keys, jnp.int32)
    return _kernel(q, k, v, hidden, causal, implementation)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, hidden: dict[str, jax.Array], causal: bool, implementation: str
) -> jax.Array:
    """jax.nn.dot_product_attention with the arguments `hidden`, whose gradients are not computed.

    Its backward pass reads its result and its softmax's sums under names that remat policies keep. Otherwise a block
    that keeps "attended" would run the kernel once more, only for the sums.
    """
    return _call(q, k, v, hidden, causal, implementation)


def _call(
    q: jax.Array, k: jax.Array, v: jax.Array, hidden: dict[str, jax.Array], causal: bool, implementation: str
) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation, **hidden)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, hidden: dict[str, jax.Array], causal: bool, implementation: str
) -> tuple[jax.Array, Callable]:
    out, backward = jax.vjp(lambda q, k, v: _call(q, k, v, hidden, causal, implementation), q, k, v)
    kept, sums = checkpoint_name(out, "attended"), (q.shape[0], *q.shape[2:0:-1])

    def name(leaf: jax.Array) -> jax.Array:
        if leaf is out:
            return kept
        return checkpoint_name(leaf, "attention_sums") if leaf.shape == sums else leaf

    return kept, jax.tree.map(name, backward)


_kernel.defvjp(_forward, lambda causal, implementation, backward, gradient: (*backward(gradient), None))
