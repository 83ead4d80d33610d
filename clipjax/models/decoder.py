"""CoCa's captioner: reads the text tower's tokens, looks at the image's, predicts the next word (2205.01917)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import DecoderConfig
from clipjax.models.layers import LayerNorm, Linear, Mlp, attention, dot
from clipjax.models.transformer import Block, block_initializers, rematerialised


class CaptionDecoder(nn.Module):
    """Negative log-likelihood of every caption given its image, [B] float32, summed over its tokens.

    text_tokens: [B, L, width] of a causal text tower; image_tokens: [B, N, image width]; text: [B, L] int32;
    counted: [B, L - 1] bool, which of text[:, 1:] are to be predicted. Blocks of causal self-attention alternate with
    blocks of cross-attention, as open_clip's MultimodalTransformer; the image tokens are not pooled first.
    """

    config: DecoderConfig
    vocab_size: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(
        self, text_tokens: jax.Array, image_tokens: jax.Array, text: jax.Array, counted: jax.Array, train: bool
    ) -> jax.Array:
        c, init = self.config, block_initializers(self.config)
        x = Linear(c.width, init["out"], False, dtype=self.dtype, name="text_projection")(text_tokens[:, :-1])
        block = rematerialised(Block, c.remat, static_argnums=(3,))
        cross_block = rematerialised(CrossBlock, c.remat)
        for i in range(c.depth):
            x, _ = block(c, True, self.dtype, self.activations, name=f"block_{i}")(x, 0.0, train)
            x = cross_block(c, self.dtype, name=f"cross_block_{i}")(x, image_tokens)
        x = LayerNorm(c.norm_eps, name="ln_final")(x)
        vocabulary = self.param("vocabulary", nn.initializers.normal(c.width**-0.5), (c.width, self.vocab_size))
        return caption_nll(x, vocabulary, text[:, 1:], counted, self.dtype)


class CrossBlock(nn.Module):
    """x + attention from x to the image tokens, then + MLP; x [B, L, width]."""

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, image_tokens: jax.Array) -> jax.Array:
        c, init = self.config, block_initializers(self.config)
        q = LayerNorm(c.norm_eps, name="ln_1")(x)
        context = LayerNorm(c.norm_eps, name="ln_context")(image_tokens)
        x = x + CrossAttention(c, self.dtype, name="attention")(q, context)
        mlp = Mlp(c.mlp_dim, c.activation, init["up"], init["down"], init["bias"], self.dtype, name="mlp")
        return x + mlp(LayerNorm(c.norm_eps, name="ln_2")(x))


class CrossAttention(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        c, init = self.config, block_initializers(self.config)
        matrix = nn.initializers.normal(c.width**-0.5)
        linear = lambda name, init: Linear(c.width, init, dtype=self.dtype, name=name)  # noqa: E731
        heads = lambda a: a.reshape(*a.shape[:2], c.num_heads, -1)  # noqa: E731
        q, k, v = (heads(linear(n, matrix)(a)) for n, a in (("query", x), ("key", context), ("value", context)))
        return linear("out", init["out"])(attention(q, k, v).reshape(x.shape))


def caption_nll(
    x: jax.Array, vocabulary: jax.Array, labels: jax.Array, counted: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """[B] float32 sums over counted positions of -log softmax(x @ vocabulary)[label].

    x: [B, L, width]; vocabulary: [width, V]; labels: [B, L] int32; counted: [B, L] bool. One position of all captions
    at a time, computed again in the backward pass: [B, V] logits exist, never [B, L, V].
    """

    @jax.checkpoint
    def position(total: jax.Array, at: tuple) -> tuple[jax.Array, None]:
        x, label, counts = at
        logits = dot(x, vocabulary, dtype).astype(jnp.float32)
        nll = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return total + jnp.where(counts, nll, 0.0), None

    along = (x.swapaxes(0, 1), labels.T, counted.T)
    return jax.lax.scan(position, jnp.zeros(x.shape[:1]), along)[0]
