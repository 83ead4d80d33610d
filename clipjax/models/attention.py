"""Self-attention, cross-attention, and attention computed for a few examples at a time to save memory.

Parameters are float32. Matrices are multiplied in `dtype`; sums inside a product and the softmax are always float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.models import cudnn_attention
from clipjax.models.flash_attention import fills_tiles, flash_attention, visible_keys
from clipjax.models.layers import Linear, Weights, add_bias, constrain, dot, dots
from clipjax.models.on_cpu import mixtures, pairs
from clipjax.models.one_query import attend_once
from clipjax.models.rotary import Rotation, rotate

Row = int | jax.Array  # of every example the same, or [batch] int32
BIASED = {"qkv": (0, 1, 2), "qv": (0, 2), "none": ()}  # BlockConfig.qkv_bias -> which of q, k, v


class SelfAttention(nn.Module):
    """Multi-head self-attention with fused q, k, v; x [batch, length, width], mask as attention()'s.

    rotation: (cos, sin) of clipjax.models.rotary, for q and k. norm: makes the norm between attention and its output
    matrix; None: there is none. kind: see BlockConfig.attention. remat: where attention is plain, the backward pass
    keeps q, k and v and computes the [length, length] weights again. chunk: see in_chunks. keys: number of
    leading rows that are not padding, if x is already padded_for cuDNN; 0: all. row: the only query of each example;
    the result is then [batch, 1, width].
    """

    num_heads: int
    causal: bool
    qkv_init: Callable
    out_init: Callable
    bias_init: Callable
    dtype: jnp.dtype
    remat: bool = False
    chunk: int = 0
    kind: str = "auto"
    activations: jax.sharding.NamedSharding | None = None
    qkv_bias: str = "qkv"
    norm: Callable | None = None
    keys: int = 0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation | None = None,
        mask: jax.Array | None = None,
        row: Row | None = None,
    ) -> jax.Array:
        _, length, width = x.shape
        if row is not None:
            return self.one_query(x, rotation, mask, row)
        fused = self_attention_by(x, self.num_heads, self.dtype, self.kind, self.activations)
        x, rotation = padded_for(fused, x, rotation)
        at_once = fused == "cudnn" or (fused == "kernel" and rotation is None and fills_tiles(length))
        kernel, biases = self.projections(width)
        q, k, v = (a.reshape(*x.shape[:2], self.num_heads, -1) for a in project(x, kernel, biases, self.dtype, at_once))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if fused == "cudnn":
            options = dict(causal=self.causal, keys=self.keys or length, sharding=self.activations)
            y = cudnn_attention.cudnn_attention(q, k, v, mask, **options).reshape(x.shape)
        else:
            y = checkpoint_name(self.unpadded(fused)(q, k, v, mask).reshape(x.shape), "attended")
        if self.norm is not None:
            y = self.norm(name="ln")(y)
        return Linear(width, self.out_init, bias_init=self.bias_init, dtype=self.dtype, name="out")(y)[:, :length]

    @nn.nowrap
    def one_query(self, x: jax.Array, rotation: Rotation | None, mask: jax.Array | None, row: Row) -> jax.Array:
        """Attention of one query an example: its weights are smaller than a channel of x."""
        batch, length, width = x.shape
        kernel, biases = self.projections(width)
        (q,) = project(row_of(x, row, self.activations), kernel[:, :1], biases[:1], self.dtype)
        seen = self.seen(batch, length, mask, row)
        heads = lambda a: a.reshape(*a.shape[:-1], self.num_heads, -1)  # noqa: E731
        if rotation is None:
            of_x = [heads(kernel[:, i]) for i in (1, 2)]
            y = attend_once(heads(q[:, 0]), x, *of_x, seen, self.dtype, self.activations).reshape(batch, width)
            y = (y if biases[2] is None else add_bias(y, biases[2]))[:, None]
        else:
            # Angles that all examples share are not copied for each of them.
            own = [row_of(a, row) if a.ndim == 3 else jnp.asarray(a)[row].reshape(-1, 1, a.shape[-1]) for a in rotation]
            k, v = project(x, kernel[:, 1:], biases[1:], self.dtype)
            y = attention(rotate(heads(q), tuple(own)), rotate(heads(k), rotation), heads(v), mask=seen)
            y = y.reshape(batch, 1, width)
        y = checkpoint_name(y, "attended")
        if self.norm is not None:
            y = self.norm(name="ln")(y)
        return Linear(width, self.out_init, bias_init=self.bias_init, dtype=self.dtype, name="out")(y)

    @nn.nowrap
    def projections(self, width: int) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
        """Kernel [width, 3, width] of q, k and v, and their biases [width]."""
        biased = BIASED[self.qkv_bias]
        shape = (len(biased), width) if biased else None
        kernel, bias = Weights((width, 3, width), shape, self.qkv_init, self.bias_init, name="qkv")()
        return kernel, tuple(bias[biased.index(i)] if i in biased else None for i in range(3))

    @nn.nowrap
    def seen(self, batch: int, length: int, mask: jax.Array | None, row: Row) -> jax.Array:
        """[batch, length] bool: the keys that each example's one query sees."""
        key, keys = jnp.arange(length), self.keys or length
        seen = key < keys
        if self.causal:
            seen &= key <= jnp.reshape(jnp.asarray(row), (-1, 1))
        if mask is not None:
            seen &= jnp.pad(visible_keys(mask, keys), ((0, 0), (0, length - keys)))
        return jnp.broadcast_to(seen, (batch, length))

    @nn.nowrap
    def unpadded(self, fused: str) -> Callable:
        """Plain attention(q, k, v, mask), or the kernel that replaces it for the platform it is compiled for."""
        attend = lambda q, k, v, mask=None: attention(q, k, v, causal=self.causal, mask=mask)  # noqa: E731
        attend = jax.checkpoint(attend) if self.remat else attend
        if self.chunk:
            attend = in_chunks(attend, self.chunk, self.activations)
        if fused or self.kind == "flash":
            attend = flash_attention(attend, causal=self.causal, sharding=self.activations, cudnn=fused == "anywhere")
        return lambda q, k, v, mask: attend(q, k, v, *([] if mask is None else [mask]))


class CrossAttention(nn.Module):
    """Multi-head attention from x [batch, length, width] to context [batch, keys, any width]; returns x's shape.

    mask: attention()'s. kind: see BlockConfig.attention; TPUs have no kernel for it. activations: of the examples.
    """

    num_heads: int
    kernel_init: Callable
    out_init: Callable
    dtype: jnp.dtype
    kind: str = "auto"
    activations: jax.sharding.NamedSharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        (batch, length, width), keys, d = x.shape, context.shape[1], x.shape[-1] // self.num_heads
        shapes = (jax.ShapeDtypeStruct((batch, n, self.num_heads, d), self.dtype) for n in (length, keys))
        fused = fused_by(self.kind, *shapes, self.activations) == "cudnn"
        if fused:
            x, context = cudnn_attention.even(x), cudnn_attention.even(context)
        # XLA would split heads that "tensor" does not divide unevenly, which layouts on CPU do not allow (on_cpu).
        sharding = self.activations
        whole = sharding if sharding is not None and self.num_heads % sharding.mesh.shape["tensor"] else None

        def heads(name: str, a: jax.Array) -> jax.Array:
            y = Linear(width, self.kernel_init, dtype=self.dtype, name=name)(a)
            return constrain(y.reshape(*a.shape[:2], self.num_heads, -1), whole)

        q, k, v = heads("query", x), heads("key", context), heads("value", context)
        if fused:
            y = cudnn_attention.cudnn_attention(q, k, v, mask, keys=keys, sharding=self.activations)
        else:
            y = constrain(attention(q, k, v, mask=mask), whole)
        return Linear(width, self.out_init, dtype=self.dtype, name="out")(y.reshape(x.shape))[:, :length]


def project(
    x: jax.Array,
    kernel: jax.Array,
    biases: tuple[jax.Array | None, ...],
    dtype: jnp.dtype,
    one_gradient: bool = False,
) -> tuple[jax.Array, ...]:
    """Linear maps of x [..., in] by kernel [in, maps, width] -> an array [..., width] for each of biases, in dtype.

    Each map is a product of its own: slicing one wide result costs a TPU a copy of it, slicing the kernel next to
    nothing. one_gradient: see dots.
    """
    flat = x.reshape(-1, x.shape[-1])
    with jax.named_scope("qkv"):
        if one_gradient:
            parts = dots(flat, kernel, dtype)
        else:
            parts = tuple(dot(flat, kernel[:, i], dtype) for i in range(len(biases)))
        parts = [y if bias is None else add_bias(y, bias) for y, bias in zip(parts, biases, strict=True)]
    return tuple(checkpoint_name(y.reshape(*x.shape[:-1], -1), "qkv") for y in parts)


def row_of(x: jax.Array, row: Row, sharding: NamedSharding | None = None) -> jax.Array:
    """x [batch, length, ...] -> [batch, 1, ...]: of each example one row. sharding: of the examples, see constrain."""
    x = constrain(x, sharding)  # and so is its gradient, into which those of the rows are added
    if isinstance(row, int):
        return constrain(x[:, row : row + 1], sharding)
    return constrain(jnp.take_along_axis(x, row.reshape(-1, *[1] * (x.ndim - 1)), axis=1), sharding)


def self_attention_by(x: jax.Array, num_heads: int, dtype: jnp.dtype, kind: str, sharding: NamedSharding | None) -> str:
    """fused_by, for self-attention of x [batch, length, width] whose products are in dtype."""
    heads = jax.ShapeDtypeStruct((*x.shape[:2], num_heads, x.shape[-1] // num_heads), dtype)
    return fused_by(kind, heads, heads, sharding)


def padded_for(fused: str, x: jax.Array, rotation: Rotation | None) -> tuple[jax.Array, Rotation | None]:
    """x [batch, length, width] and its rotation, with a row of padding after an odd length if `fused` is "cudnn".

    An extra row in the products costs less than padding q, k and v one by one. It is a copy of the last row, so that it
    is finite wherever the others are: attention multiplies it by weights of 0.
    """
    if fused != "cudnn" or x.shape[1] % 2 == 0:
        return x, rotation
    turned = None if rotation is None else tuple(cudnn_attention.even(a, a.ndim - 2) for a in rotation)
    return jnp.concatenate([x, jax.lax.stop_gradient(x[:, -1:])], axis=1), turned


def fused_by(kind: str, q: jax.Array, k: jax.Array, sharding: NamedSharding | None) -> str:
    """What computes attention of BlockConfig.attention=kind for arrays of these shapes and dtypes.

    "": attention(). "cudnn": cudnn_attention, on the GPUs of sharding's mesh. "kernel": flash_attention. "anywhere":
    flash_attention too, which decides when the program is compiled, as a program without a mesh may run on the
    machine's GPU or on its processor.
    """
    device = jax.local_devices()[0] if sharding is None else sharding.mesh.devices.flat[0]
    if kind == "dense" or device.platform == "cpu" or not _divides(q, sharding):
        return ""
    if device.platform == "tpu":
        return "kernel"
    if not cudnn_attention.takes(q, k) or not cudnn_attention.usable_on(device):
        return ""
    return "anywhere" if sharding is None else "cudnn"


def _divides(q: jax.Array, sharding: NamedSharding | None) -> bool:
    """Whether every device of a mesh has whole examples and heads of q [batch, length, heads, d], equally many."""
    if sharding is None:
        return True
    tensor = sharding.mesh.shape["tensor"]
    return q.shape[0] * tensor % sharding.mesh.size == 0 and q.shape[2] % tensor == 0


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False, mask: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v; q [batch, length, heads, d], k and v [batch, keys, heads, d] -> the shape of q.

    mask: [batch, keys] bool, the keys that may be seen; or [batch] int32, how many of them, from the first on, where 0
    means all. A query to which causal and mask leave no key attends to all keys equally.
    """
    logits = pairs(q * q.shape[-1] ** -0.5, k)
    if causal:
        visible = np.tri(q.shape[1], k.shape[1], dtype=bool)
        logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
    if mask is not None:
        logits = jnp.where(visible_keys(mask, k.shape[1])[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return mixtures(weights, v).astype(v.dtype)


def in_chunks(attend: Callable, chunk: int, sharding: NamedSharding | None) -> Callable:
    """attend, computed for at most `chunk` of a device's examples at a time.

    attend(q, k, v) takes [batch, length, heads, d]; attend(q, k, v, mask) also attention()'s mask.
    The backward pass computes the [length, length] weights again, chunk by chunk. A TPU keeps a chunk's in vector
    memory (8 images of 196 tokens and 12 heads: 19 MB), whereas those of a whole batch go through HBM five times.
    sharding: of the examples. Heads are split over "tensor", like the weights that make them.
    """

    def local(*args: jax.Array) -> jax.Array:
        count = args[0].shape[0]
        size = max(d for d in range(1, min(chunk, count) + 1) if count % d == 0)
        parts = tuple(a.reshape(count // size, size, *a.shape[1:]) for a in args)
        return jax.lax.map(jax.checkpoint(lambda part: attend(*part)), parts).reshape(args[0].shape)

    if sharding is None:
        return local
    specs = {4: P(*sharding.spec, None, "tensor"), 2: sharding.spec, 1: sharding.spec}  # by rank
    # Every device loops over its own examples; a loop over chunks of the whole batch would move them.
    return lambda *args: jax.shard_map(
        local, mesh=sharding.mesh, in_specs=tuple(specs[a.ndim] for a in args), out_specs=specs[4], check_vma=False
    )(*args)
