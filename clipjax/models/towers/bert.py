"""BERT and (XLM-)RoBERTa as text towers: post-norm blocks, padding that nothing attends to, token type embeddings.

References: BERT 1810.04805, XLM-R 1911.02116; transformers' AlignModel and open_clip's HFTextEncoder for the heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.config import TextTowerConfig, require
from clipjax.config.fields import LAYOUT, experiment, meaning, runtime, weights
from clipjax.config.model import Activation, AttentionKind
from clipjax.config.ranges import DEPTH, EXAMPLES_OR_ZERO, POSITIONS, POSITIONS_OR_ZERO, RATE, TOKEN_ID, WIDTH
from clipjax.models import tower_flops
from clipjax.models.attention import SelfAttention
from clipjax.models.layers import LayerNorm, Linear, Mlp, constrain
from clipjax.models.towers.text import TokenEmbedding, through_last
from clipjax.models.towers.tower import TEXT, Tower, TowerOutput, check_projection, no_hidden_states, token_ids
from clipjax.models.transformer import check_heads, in_parts, rematerialised

NORMAL = nn.initializers.normal(0.02)  # of every matrix and table; biases start at zero (BERT)


@dataclass(frozen=True)
class BertConfig(TextTowerConfig):
    """The defaults are BERT-base's, uncased, with the pool and projection of open_clip's HFTextEncoder."""

    name: str = "bert"
    vocab_size: int = 30_522
    width: int = 768
    norm_eps: float = 1e-12
    depth: int = weights(12, within=DEPTH)
    num_heads: int = meaning(12, within=WIDTH)
    mlp_dim: int = weights(3072, within=WIDTH)
    activation: Activation = meaning("gelu")
    # cls: the first position. pooler: BERT's tanh layer on the first position. mean: over all positions except padding
    pool: Literal["cls", "mean", "pooler"] = meaning("mean")
    pooler: bool = weights(False)  # has the parameters of BERT's pooler; ALIGN has them and does not use them
    pad_id: int = meaning(0, within=TOKEN_ID)  # the padding, which nothing attends to
    num_positions: int = weights(0, within=POSITIONS_OR_ZERO)  # rows of the position table; 0: context_length
    positions_after_padding: bool = meaning(False)  # counted from pad_id + 1 on, padding not counted (RoBERTa)
    token_types: int = weights(2, within=POSITIONS)  # rows of the token type table, of which the first is used
    # none: width == embed_dim. mlp: two maps with a GELU between (open_clip)
    projection: Literal["linear", "mlp", "none"] = weights("linear")
    projection_bias: bool = weights(False)
    dropout: float = experiment(0.0, within=RATE)
    scan_layers: bool = runtime(True, fixed=LAYOUT)
    attention: AttentionKind = runtime("auto")
    # examples per device whose attention weights exist at a time; 0: all
    attention_chunk: int = runtime(0, within=EXAMPLES_OR_ZERO)


class BertEncoder(nn.Module):
    """text [B, L] int32, L <= context_length -> TowerOutput, tokens [B, L, width].

    Positions whose id is config.pad_id are not attended to: a text's embedding does not depend on how far it is padded.
    The tokens at those positions mean nothing. Raises ConfigError for hidden_layers: it has none to give.
    """

    config: BertConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None
    frozen_blocks: int = 0

    @nn.compact
    def __call__(self, text: jax.Array, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        c = self.config
        no_hidden_states(c.name, hidden_layers)
        check(c, self.embed_dim)
        visible = text != c.pad_id
        embedding = TokenEmbedding(c.vocab_size, c.width, NORMAL, self.activations, name="token_embedding")
        position = self.param("position_embedding", NORMAL, (c.num_positions or c.context_length, c.width))
        token_type = self.param("token_type_embedding", NORMAL, (c.token_types, c.width))
        if c.positions_after_padding:
            # fairseq's rule: padding has position pad_id, the first token pad_id + 1.
            at = jnp.take(position, c.pad_id + jnp.cumsum(visible, axis=1) * visible, axis=0)
            at = constrain(at, self.activations)
        else:
            at = position[: text.shape[1]]
        x = (embedding(text) + token_type[0] + at).astype(self.dtype)
        x = LayerNorm(c.norm_eps, name="ln_embedding")(x)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        tokens = self.blocks(x, visible, train)
        return TowerOutput(self.head(tokens, visible), tokens)

    def blocks(self, x: jax.Array, visible: jax.Array, train: bool) -> jax.Array:
        """x [B, L, width], visible [B, L] bool -> the last block's states, as x."""
        c = self.config
        block = rematerialised(PostNormBlock, c.remat, prevent_cse=not c.scan_layers, static_argnums=(3,))
        if not c.scan_layers:
            for i in range(c.depth):
                x, _ = block(c, self.dtype, self.activations, name=f"block_{i}")(x, visible, train)
            return x

        def run(blocks: nn.Module, x: jax.Array, start: int, stop: int) -> jax.Array:
            scan = nn.scan(
                lambda block, x, _: block(x, visible, train),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=stop - start,
            )
            return scan(blocks, x, None)[0]

        return in_parts(run, block(c, self.dtype, self.activations, name="blocks"), x, c.depth, self.frozen_blocks)

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

    config: BertConfig
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array, train: bool) -> tuple[jax.Array, None]:
        c, zeros = self.config, nn.initializers.zeros
        remat = c.remat == "attention"
        x = constrain(x, self.activations)
        options = dict(remat=remat, chunk=c.attention_chunk, kind=c.attention, activations=self.activations)
        attention = SelfAttention(c.num_heads, False, NORMAL, NORMAL, zeros, self.dtype, **options, name="attention")
        mlp = Mlp(c.mlp_dim, c.activation, NORMAL, NORMAL, zeros, self.dtype, name="mlp")
        dropout = lambda y: nn.Dropout(c.dropout, deterministic=not train)(y)  # noqa: E731
        x = LayerNorm(c.norm_eps, name="ln_1")(x + dropout(attention(x, mask=visible)))
        x = LayerNorm(c.norm_eps, name="ln_2")(x + dropout(mlp(x)))
        return constrain(x, self.activations), None


def check(config: BertConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other or embed_dim."""
    c = config
    check_heads(c.width, c.num_heads, TEXT)
    require(c.pooler or c.pool != "pooler", f"{TEXT}.pool='pooler' needs {TEXT}.pooler=True.")
    rows = c.num_positions or c.context_length
    needed = c.context_length + (c.pad_id + 1 if c.positions_after_padding else 0)
    require(
        rows >= needed,
        f"{TEXT}.num_positions={rows} is less than the {needed} positions that context_length={c.context_length} "
        f"needs (with positions_after_padding the first is pad_id + 1).",
    )
    check_projection(c.projection != "none", "projection='linear'", c.width, embed_dim, TEXT)


def check_tokenizer(config: BertConfig, tokenizer: Any) -> None:
    """Raises ConfigError for a tokenizer that pads with another id than the tower masks."""
    require(
        config.pad_id == tokenizer.pad_id,
        f"{TEXT}.pad_id={config.pad_id} is what the tower takes for padding, but the tokenizer pads with "
        f"{tokenizer.pad_id}; set {TEXT}.pad_id={tokenizer.pad_id} or config.tokenizer.pad_id.",
    )


def needed(config: BertConfig) -> Callable[[np.ndarray], np.ndarray]:
    """See Tower.needed: the padding is masked. A text of nothing but padding sees all of it."""

    def lengths(ids: np.ndarray) -> np.ndarray:
        found = through_last(ids != config.pad_id)
        return np.where(found == 0, ids.shape[-1], found)

    return lengths


def count_flops(config: BertConfig, embed_dim: int) -> tower_flops.TowerFlops:
    c, length = config, config.context_length
    products = tower_flops.stack_products(c.depth, c.width, c.mlp_dim, length) + 2 * c.width * embed_dim
    return tower_flops.TowerFlops(products, tower_flops.self_attention(c.depth, c.width, length), (length, c.width))


TOWER = Tower(
    BertEncoder,
    BertConfig,
    check,
    token_ids,
    count_flops,
    tensor_axis=("num_heads", "mlp_dim"),
    random=("dropout",),
    check_tokenizer=check_tokenizer,
    needed=needed,
    heads=("pooler", "projection_hidden", "projection"),
)
