"""Text transformers: CLIP's (causal, EOS pooling) and SigLIP's (bidirectional, last position) are settings of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.config import BlockConfig, TextTowerConfig, require
from clipjax.config.fields import LAYOUT, meaning, runtime, weights
from clipjax.config.ranges import BASE, TOKEN_ID, TOKEN_ID_OR_NONE
from clipjax.models import tower_flops
from clipjax.models.layers import NORMS, Linear, constrain
from clipjax.models.rotary import rotary_1d
from clipjax.models.towers.tower import TEXT, Hidden, Tower, TowerOutput, check_projection, token_ids
from clipjax.models.transformer import check_heads, check_rope, transformer


@dataclass(frozen=True)
class TextTransformerConfig(BlockConfig, TextTowerConfig):
    name: str = "transformer"
    causal: bool = meaning(True)  # a token sees only those before it
    # eos: at eos_id. last: the last position, padding included (SigLIP). gap: the mean. cls: a token appended (CoCa)
    pool: Literal["eos", "last", "gap", "cls"] = meaning("eos")
    # where a text ends: the first position with this id; < 0: the largest id (OpenAI)
    eos_id: int = meaning(-1, within=TOKEN_ID_OR_NONE)
    pad_id: int = meaning(0, within=TOKEN_ID)  # pool="cls": the padding, which nothing attends to
    position: Literal["learned", "none"] = weights("learned")
    rope: bool = meaning(False)  # rotary positions
    rope_theta: float = meaning(10_000.0, within=BASE)  # base of the rotary frequencies
    projection: Literal["linear", "none"] = weights("linear")  # none: width == embed_dim
    projection_bias: bool = weights(False)  # a bias in that map
    scan_layers: bool = runtime(True, fixed=LAYOUT)  # one loop over stacked blocks: compiles faster


class TextTransformer(nn.Module):
    """text [B, L] int32, L <= context_length -> TowerOutput, tokens [B, L, width].

    Padding is attended to, as in CLIP (where causality hides it from the pooled position) and SigLIP
    (which always pads to the full context). A causal tower with EOS pooling may be given fewer columns than
    context_length as long as every EOS is in them: the result is the same.

    pool="cls" is open_clip's CoCa: a class token behind the last column, padding masked, ln_final on the class token
    alone, so that the tokens are the last block's. give_tokens: see Tower.
    """

    config: TextTransformerConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None
    frozen_blocks: int = 0
    give_tokens: bool = True

    @nn.compact
    def __call__(self, text: jax.Array, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        c = self.config
        normal = nn.initializers.normal
        clip = c.init == "clip"
        embedding = TokenEmbedding(
            c.vocab_size, c.width, normal(0.02 if clip else c.width**-0.5), self.activations, name="token_embedding"
        )
        x, mask = embedding(text), None
        if c.pool == "cls":
            cls = self.param("cls_token", normal(0.01), (c.width,))
            x = jnp.concatenate([x, jnp.broadcast_to(cls, (x.shape[0], 1, c.width))], axis=1)
            mask = class_token_mask(text, c.pad_id)
        if c.position == "learned":
            size = (c.context_length + (c.pool == "cls"), c.width)
            position = self.param("position_embedding", normal(0.01 if clip else c.width**-0.5), size)
            x = x + positions_of(position, x.shape[1], last=c.pool == "cls")
        x = x.astype(self.dtype)
        rotation = rotary_1d(x.shape[1], c.width // c.num_heads, c.rope_theta) if c.rope else None
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        # Of the last block, nothing but the pooled position is read.
        alone = c.pool != "gap" and not (self.give_tokens or hidden_layers or self.is_initializing())
        row = (end_of_text(text, c.eos_id) if c.pool == "eos" else -1) if alone else None
        x, states = transformer(
            x,
            c,
            causal=c.causal,
            dtype=self.dtype,
            train=train,
            activations=self.activations,
            rotation=rotation,
            mask=mask,
            hidden_layers=hidden_layers,
            frozen_blocks=self.frozen_blocks,
            row=row,
        )
        ln_final = NORMS[c.norm](c.norm_eps, name="ln_final")
        if alone:
            tokens, x = None, ln_final(x[:, 0])
        elif c.pool == "cls":
            tokens, x = x[:, :-1], ln_final(x[:, -1])
        else:
            tokens = ln_final(x)
            x = pool_text(tokens, text, c)
        if c.projection == "linear":
            init = normal(c.width**-0.5) if clip else nn.initializers.lecun_normal()
            x = Linear(self.embed_dim, init, c.projection_bias, dtype=self.dtype, name="projection")(x)
        return TowerOutput(x, tokens, tuple(Hidden(state, ln_final(state)) for state in states))


class TokenEmbedding(nn.Module):
    """ids [B, L] int32 -> rows [B, L, width] of a table [vocab_size, width] float32."""

    vocab_size: int
    width: int
    embedding_init: Callable
    activations: jax.sharding.Sharding | None

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.param("embedding", self.embedding_init, (self.vocab_size, self.width))
        if self.activations is not None:
            # Gather FSDP's slices of the table, not the rows looked up: B x L rows are more than the vocabulary.
            table = constrain(table, NamedSharding(self.activations.mesh, P()))
        return constrain(jnp.take(table, ids, axis=0), self.activations)


def positions_of(table: jax.Array, length: int, *, last: bool) -> jax.Array:
    """The rows [length, width] of a table of positions: the first ones; last: the table's last one in the last place.

    A class token keeps its position, behind the longest text, however short the texts of a batch are.
    """
    return jnp.concatenate([table[: length - 1], table[-1:]]) if last else table[:length]


def class_token_mask(text: jax.Array, pad_id: int) -> jax.Array:
    """[B, L + 1] bool: which keys are attended to; the class token's is the last.

    The published CoCa weights were trained with this mask one column too far to the right (open_clip transformer.py,
    correct_cls_mask=False): the first padding is seen, and the class token sees itself only behind a full text.
    """
    return jnp.pad(text != pad_id, ((0, 0), (1, 0)), constant_values=True)


def pool_text(x: jax.Array, text: jax.Array, config: TextTransformerConfig) -> jax.Array:
    """x [B, L, width] -> [B, width]: at the end of the text, at the last position, or the mean, by config.pool."""
    if config.pool == "last":
        return x[:, -1]
    if config.pool == "gap":
        return x.mean(axis=1)
    where = end_of_text(text, config.eos_id)
    return jnp.take_along_axis(x, where[:, None, None], axis=1)[:, 0]


def end_of_text(text: jax.Array, eos_id: int) -> jax.Array:
    """[B] int32: the position of the first eos_id; eos_id < 0: of the largest id (openai/CLIP)."""
    return jnp.argmax(text if eos_id < 0 else text == eos_id, axis=1)


def needed(config: TextTransformerConfig) -> Callable[[np.ndarray], np.ndarray] | str:
    """See Tower.needed. Behind causal attention, what follows the pooled position changes nothing."""
    if config.pool == "cls":
        if config.rope:
            return f"{TEXT}.rope turns the class token by the number of columns"
        return lambda ids: through_class_token(ids, config)
    if not config.causal:
        return f"{TEXT}.causal=False: every token attends to the padding"
    if config.pool != "eos":
        return f"{TEXT}.pool='{config.pool}' reads the padding"
    return lambda ids: through_end(ids, config.eos_id)


def through_end(ids: np.ndarray, eos_id: int) -> np.ndarray:
    """end_of_text + 1 of NumPy ids [..., L]."""
    return np.argmax(ids if eos_id < 0 else ids == eos_id, axis=-1) + 1


def through_class_token(ids: np.ndarray, config: TextTransformerConfig) -> np.ndarray:
    """Of pool="cls", ids [..., L]: the text, and the one padding that class_token_mask shows.

    Where a text fills all columns the class token sees itself instead, so that none can be cut off.
    """
    text = np.maximum(through_last(ids != config.pad_id), through_end(ids, config.eos_id))
    return np.minimum(text + 1, ids.shape[-1])


def through_last(present: np.ndarray) -> np.ndarray:
    """present [..., L] bool -> [...] int: the columns up to the last that is True; 0 if none is."""
    return np.where(present.any(axis=-1), present.shape[-1] - np.argmax(present[..., ::-1], axis=-1), 0)


def check(config: TextTransformerConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other or embed_dim."""
    check_heads(config.width, config.num_heads, TEXT)
    check_rope(config, TEXT, axes=1)
    check_projection(config.projection != "none", "projection='linear'", config.width, embed_dim, TEXT)


def check_tokenizer(config: TextTransformerConfig, tokenizer: Any) -> None:
    """Raises ConfigError for a tokenizer whose end of text, or padding, is not what the tower looks for."""
    # The largest id is the end of text if the vocabulary ends with it, as CLIP's does.
    largest = config.eos_id < 0 and tokenizer.eos_id == tokenizer.vocab_size - 1
    require(
        config.pool != "eos" or largest or config.eos_id == tokenizer.eos_id,
        f"{TEXT}.pool='eos' looks for id eos_id={config.eos_id}, but the tokenizer ends texts with "
        f"{tokenizer.eos_id}; set {TEXT}.eos_id={tokenizer.eos_id}.",
    )
    ids = tokenizer(["a"])[0]
    require(
        config.pool != "eos" or (ids == tokenizer.eos_id).argmax() > 0,
        f"{TEXT}.pool='eos' looks for id {tokenizer.eos_id}, but the tokenizer makes {ids.tolist()} of 'a': no "
        "text ends with it. Set config.tokenizer.add_eos=True and eos_to_pad=False, or another pool.",
    )
    require(
        config.pool != "cls" or config.pad_id == tokenizer.pad_id,
        f"{TEXT}.pad_id={config.pad_id} is what pool='cls' takes for padding, but the tokenizer pads with "
        f"{tokenizer.pad_id}; set {TEXT}.pad_id={tokenizer.pad_id} or config.tokenizer.pad_id.",
    )


def count_flops(config: TextTransformerConfig, embed_dim: int) -> tower_flops.TowerFlops:
    c, length = config, config.context_length + (config.pool == "cls")
    products = tower_flops.block_products(c, length) + 2 * c.width * embed_dim
    unread = (0, 0) if c.pool == "gap" else tower_flops.beside_one_row(c, length, c.rope)
    attention = tower_flops.self_attention(c.depth, c.width, length)
    return tower_flops.TowerFlops(products, attention, (length, c.width), unread)


TOWER = Tower(
    TextTransformer,
    TextTransformerConfig,
    check,
    token_ids,
    count_flops,
    hidden_states=True,
    tokens_optional=True,
    tensor_axis=("num_heads", "mlp_dim"),
    random=("dropout", "drop_path"),
    check_tokenizer=check_tokenizer,
    needed=needed,
    heads=("ln_final", "projection"),
)
