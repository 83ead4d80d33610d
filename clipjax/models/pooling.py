"""CoCa's attentional pooling: learned queries look at an image's tokens and become as many new ones (2205.01917)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.models.layers import CrossAttention, LayerNorm, constrain


class AttentionalPooler(nn.Module):
    """x [batch, length, any width] -> [batch, queries, width]; no residual and no MLP, as open_clip's."""

    width: int
    queries: int
    num_heads: int
    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        queries = self.param("queries", nn.initializers.normal(1.0), (self.queries, self.width))
        q = LayerNorm(self.eps, name="ln_q")(queries).astype(x.dtype)
        q = jnp.broadcast_to(q, (x.shape[0], *q.shape))
        matrix = nn.initializers.normal(self.width**-0.5)
        attention = CrossAttention(self.num_heads, matrix, matrix, self.dtype, name="attention")
        return attention(q, LayerNorm(self.eps, name="ln_k")(x))


def pool_by_attention(tower: nn.Module, x: jax.Array, ln_post: nn.Module) -> tuple[jax.Array, jax.Array]:
    """x [B, L, width] -> (pooled [B, embed_dim], tokens [B, N, embed_dim]); called from a tower's compact method.

    config.pool "attentional": one pooler, whose first token is the image's and whose others are the captioner's (the
    published CoCa weights). The paper has a pooler of one query beside the captioner's: "parallel" looks at the
    tower's tokens with both, "cascade" at the captioner's tokens with the second. Source: open_clip transformer.py.
    """
    c, x = tower.config, constrain(x, tower.activations)

    def pooler(queries: int, name: str) -> AttentionalPooler:
        return AttentionalPooler(tower.embed_dim, queries, c.pooler_heads, c.norm_eps, tower.dtype, name=name)

    if c.pool == "attentional":
        tokens = ln_post(pooler(c.pooler_queries, "pooler")(x))
        return tokens[:, 0], tokens[:, 1:]
    x = ln_post(x)
    tokens = pooler(c.pooler_queries, "pooler")(x)
    pooled = pooler(1, "contrastive_pooler")(x if c.pool == "parallel" else tokens)
    return pooled[:, 0], tokens
