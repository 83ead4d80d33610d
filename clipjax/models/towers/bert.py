"""BERT and (XLM-)RoBERTa as text towers: post-norm blocks, padding that nothing attends to, token type embeddings.

References: BERT 1810.04805, XLM-R 1911.02116; transformers' AlignModel and open_clip's HFTextEncoder for the heads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import TextTowerConfig, require
from clipjax.models.layers import LayerNorm, Linear, Mlp, SelfAttention, constrain
from clipjax.models.towers.text import TokenEmbedding
from clipjax.models.transformer import rematerialised

NORMAL = nn.initializers.normal(0.02)  # of every matrix and table; biases start at zero (BERT)


class BertEncoder(nn.Module):
    """text [B, L] int32, L <= context_length -> ([B, embed_dim] not of unit length, tokens [B, L, width]), in dtype.

    Positions whose id is config.pad_id are not attended to: a text's embedding does not depend on how far it is padded.
    Their own tokens in the second result mean nothing. Raises ConfigError for settings it does not have.
    """

    config: TextTowerConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, text: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        c = self.config
        check_bert(c, self.embed_dim)
        visible = text != c.pad_id
        embedding = TokenEmbedding(c.vocab_size, c.width, NORMAL, self.activations, name="token_embedding")
        position = self.param("position_embedding", NORMAL, (c.num_positions or c.context_length, c.width))
        token_type = self.param("token_type_embedding", NORMAL, (c.token_types, c.width))
        if c.positions_after_padding:
            # fairseq's rule: padding has the position pad_id, the first token pad_id + 1.
            at = jnp.take(position, c.pad_id + jnp.cumsum(visible, axis=1) * visible, axis=0)
            at = constrain(at, self.activations)
        else:
            at = position[: text.shape[1]]
        x = (embedding(text) + token_type[0] + at).astype(self.dtype)
        x = LayerNorm(c.norm_eps, name="ln_embedding")(x)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        tokens = self.blocks(x, visible, train)
        return self.head(tokens, visible), tokens

    def blocks(self, x: jax.Array, visible: jax.Array, train: bool) -> jax.Array:
        c = self.config
        block = rematerialised(PostNormBlock, c.remat, prevent_cse=not c.scan_layers, static_argnums=(3,))
        if not c.scan_layers:
            for i in range(c.depth):
                x, _ = block(c, self.dtype, self.activations, name=f"block_{i}")(x, visible, train)
            return x
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.depth,
        )
        return scanned(c, self.dtype, self.activations, name="blocks")(x, visible, train)[0]

    def head(self, tokens: jax.Array, visible: jax.Array) -> jax.Array:
        """tokens [B, L, width] -> [B, embed_dim]."""
        c = self.config
        linear = lambda features, name, bias=False: Linear(features, NORMAL, bias, dtype=self.dtype, name=name)  # noqa: E731
        x = tokens[:, 0]
        if c.pooler:
            pooled = jnp.tanh(linear(c.width, "pooler", True)(x))
            x = pooled if c.pool == "pooler" else x
        if c.pool == "mean":
            counted = visible[:, :, None]
            total = jnp.where(counted, tokens, 0).sum(axis=1, dtype=jnp.float32)
            x = (total / jnp.maximum(counted.sum(axis=1), 1)).astype(self.dtype)
        if c.projection == "mlp":
            hidden = (c.width + self.embed_dim) // 2
            x = nn.gelu(linear(hidden, "projection_hidden", c.projection_bias)(x), approximate=False)
        return x if c.projection == "none" else linear(self.embed_dim, "projection", c.projection_bias)(x)


class PostNormBlock(nn.Module):
    """LN(x + attention(x)), then LN(x + MLP(x)); x [B, L, width], visible [B, L] bool. Returns (x, None)."""

    config: TextTowerConfig
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array, train: bool) -> tuple[jax.Array, None]:
        c, zeros = self.config, nn.initializers.zeros
        remat = c.remat == "attention"
        x = constrain(x, self.activations)
        chunk = dict(chunk=c.attention_chunk, activations=self.activations)
        attention = SelfAttention(
            c.num_heads, False, NORMAL, NORMAL, zeros, self.dtype, remat=remat, **chunk, name="attention"
        )
        mlp = Mlp(c.mlp_dim, c.activation, NORMAL, NORMAL, zeros, self.dtype, name="mlp")
        dropout = lambda y: nn.Dropout(c.dropout, deterministic=not train)(y)  # noqa: E731
        x = LayerNorm(c.norm_eps, name="ln_1")(x + dropout(attention(x, mask=visible)))
        x = LayerNorm(c.norm_eps, name="ln_2")(x + dropout(mlp(x)))
        return constrain(x, self.activations), None


def check_bert(config: TextTowerConfig, embed_dim: int) -> None:
    """Raises ConfigError for a text tower that BertEncoder cannot be."""
    where, c = "config.model.text", config
    require(
        c.pool in ("cls", "mean", "pooler"), f"{where}.name='bert' pools by 'cls', 'mean' or 'pooler', not '{c.pool}'."
    )
    require(c.pooler or c.pool != "pooler", f"{where}.pool='pooler' needs {where}.pooler=True.")
    require(not c.causal, f"{where}.name='bert' has no causal mask; set {where}.causal=False.")
    require(c.drop_path == 0, f"{where}.name='bert' has no drop_path; set {where}.drop_path=0.0.")
    require(c.pad_id >= 0, f"{where}.pad_id={c.pad_id}: name='bert' needs the id of its padding (BERT 0, XLM-R 1).")
    rows = c.num_positions or c.context_length
    needed = c.context_length + (c.pad_id + 1 if c.positions_after_padding else 0)
    require(
        rows >= needed,
        f"{where}.num_positions={rows} is less than the {needed} positions that context_length={c.context_length} "
        f"needs (with positions_after_padding the first is pad_id + 1).",
    )
    require(
        c.projection != "none" or c.width == embed_dim,
        f"{where}.projection='none' needs width == embed_dim, but width={c.width} and embed_dim={embed_dim}.",
    )
