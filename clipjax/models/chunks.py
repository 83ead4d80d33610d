"""Attention for a few examples at a time, so that the weights of all heads stay in on-chip memory."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def in_chunks(attend: Callable, chunk: int, sharding: NamedSharding | None) -> Callable:
    """attend(q, k, v) on [batch, length, heads, d], or attend(q, k, v, mask [batch, length]), computed for at most
    `chunk` of a device's examples at a time.

    Their [length, length] weights are computed again in the backward pass, chunk by chunk. A TPU keeps those of a
    chunk in vector memory (8 images of 196 tokens and 12 heads: 19 MB) where those of a batch go through HBM five
    times. sharding: of the examples; heads lie over "tensor" as the weights that made them.
    """

    def local(*args: jax.Array) -> jax.Array:
        count = args[0].shape[0]
        size = max(d for d in range(1, min(chunk, count) + 1) if count % d == 0)
        parts = tuple(a.reshape(count // size, size, *a.shape[1:]) for a in args)
        return jax.lax.map(jax.checkpoint(lambda part: attend(*part)), parts).reshape(args[0].shape)

    if sharding is None:
        return local
    specs = {4: P(*sharding.spec, None, "tensor"), 2: sharding.spec}  # by rank
    # Every device goes through its own examples: without, a loop over chunks of the whole batch would move them.
    return lambda *args: jax.shard_map(
        local, mesh=sharding.mesh, in_specs=tuple(specs[a.ndim] for a in args), out_specs=specs[4], check_vma=False
    )(*args)
