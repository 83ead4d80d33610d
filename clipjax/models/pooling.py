"""Pooling by attention: SigLIP's MAP head, and CoCa's learned queries, each of which becomes a token (2205.01917)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.models.attention import CrossAttention
from clipjax.models.flash_attention import visible_keys
from clipjax.models.layers import LayerNorm, Linear, Mlp, Weights, add_bias, constrain
from clipjax.models.one_query import attend_once


class MapHead(nn.Module):
    """Multi-head attention pooling: one learned probe attends to all tokens, then a residual MLP.

    x [batch, length, width], mask as attention()'s -> [batch, width]. activations: of the examples.
    Source: big_vision models/vit.py MAPHead (Scaling ViTs, 2106.04560).
    """

    num_heads: int
    mlp_dim: int
    activation: str
    eps: float
    dtype: jnp.dtype
    activations: jax.sharding.NamedSharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        batch, _, width = x.shape
        xavier = nn.initializers.xavier_uniform()
        probe = self.param("probe", lambda key, shape: xavier(key, (1, *shape))[0], (width,))
        attend = ProbeAttention(self.num_heads, self.dtype, self.activations, name="attention")
        y = attend(probe.astype(x.dtype), x, mask)
        mlp = Mlp(self.mlp_dim, self.activation, xavier, xavier, nn.initializers.normal(1e-6), self.dtype, name="mlp")
        return y + mlp(LayerNorm(self.eps, name="ln")(y))


class ProbeAttention(nn.Module):
    """Attention of one query, probe [width], over x [batch, length, width] -> [batch, width]."""

    num_heads: int
    dtype: jnp.dtype
    activations: jax.sharding.NamedSharding | None = None

    @nn.compact
    def __call__(self, probe: jax.Array, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        batch, length, width = x.shape
        xavier = nn.initializers.xavier_uniform()
        heads = lambda a: a.reshape(*a.shape[:-1], self.num_heads, -1)  # noqa: E731
        # Of every example: products of a single row would be divided over FSDP's slices of the matrix.
        probes = constrain(jnp.broadcast_to(probe, (batch, width)), self.activations)
        q = Linear(width, xavier, dtype=self.dtype, name="query")(probes)
        key, _ = Weights((width, width), (width,), xavier, name="key")()
        value, bias = Weights((width, width), (width,), xavier, name="value")()
        seen = None if mask is None else visible_keys(mask, length)
        y = attend_once(heads(q), x, heads(key), heads(value), seen, self.dtype, self.activations)
        return Linear(width, xavier, dtype=self.dtype, name="out")(add_bias(y.reshape(batch, width), bias))


class AttentionalPooler(nn.Module):
    """x [batch, length, any width] -> [batch, queries, width]; without residual and MLP, as open_clip's.

    kind, activations: see CrossAttention.
    """

    width: int
    queries: int
    num_heads: int
    eps: float
    dtype: jnp.dtype
    kind: str = "auto"
    activations: jax.sharding.NamedSharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        queries = self.param("queries", nn.initializers.normal(1.0), (self.queries, self.width))
        q = LayerNorm(self.eps, name="ln_q")(queries).astype(x.dtype)
        q = jnp.broadcast_to(q, (x.shape[0], *q.shape))
        matrix = nn.initializers.normal(self.width**-0.5)
        options = dict(kind=self.kind, activations=self.activations)
        attend = CrossAttention(self.num_heads, matrix, matrix, self.dtype, **options, name="attention")
        return attend(q, LayerNorm(self.eps, name="ln_k")(x))
