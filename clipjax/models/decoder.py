"""CoCa's captioner: reads the text tower's tokens, attends to the image's, predicts the next word (2205.01917)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import DecoderConfig, ModelConfig, require
from clipjax.models.layers import NORMS, dot
from clipjax.models.transformer import Block, rematerialised


class CaptionDecoder(nn.Module):
    """Negative log-likelihood of every caption given its image, [B] float32, summed over its tokens.

    text_tokens: [B, L, width] of a causal text tower; image_tokens: [B, N, any width]; text: [B, L] int32;
    counted: [B, L - 1] bool, which of text[:, 1:] to predict; mask: of image_tokens, as TowerOutput has it. Blocks of
    causal self-attention alternate with blocks of cross-attention, as in open_clip's MultimodalTransformer.
    """

    config: DecoderConfig
    vocab_size: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(
        self,
        text_tokens: jax.Array,
        image_tokens: jax.Array,
        text: jax.Array,
        counted: jax.Array,
        train: bool,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        c, length = self.config, text.shape[1] - 1
        x = text_tokens[:, :-1].reshape(-1, c.width)
        block = rematerialised(Block, c.remat, static_argnums=(3,))
        for i in range(c.depth):
            x, _ = block(c, True, self.dtype, length, self.activations, name=f"block_{i}")(x, 0.0, train)
            cross_block = block(c, False, self.dtype, length, self.activations, cross=True, name=f"cross_block_{i}")
            x, _ = cross_block(x, 0.0, train, context=image_tokens, mask=mask)
        x = NORMS[c.norm](c.norm_eps, name="ln_final")(x.reshape(-1, length, c.width))
        vocabulary = self.param("vocabulary", nn.initializers.normal(c.width**-0.5), (c.width, self.vocab_size))
        return caption_nll(x, vocabulary, text[:, 1:], counted, self.dtype)


def caption_nll(
    x: jax.Array, vocabulary: jax.Array, labels: jax.Array, counted: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """[B] float32 sums over counted positions of -log softmax(x @ vocabulary)[label].

    x: [B, L, width]; vocabulary: [width, V]; labels: [B, L] int32; counted: [B, L] bool. It computes one position of
    all captions at a time, and again in the backward pass: [B, V] logits exist, never [B, L, V].
    """

    @jax.checkpoint
    def position(total: jax.Array, at: tuple) -> tuple[jax.Array, None]:
        x, label, counts = at
        logits = dot(x, vocabulary, dtype).astype(jnp.float32)
        nll = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return total + jnp.where(counts, nll, 0.0), None

    along = (x.swapaxes(0, 1), labels.T, counted.T)
    return jax.lax.scan(position, jnp.zeros(x.shape[:1]), along)[0]


def check_decoder(model: ModelConfig) -> None:
    """Raises ConfigError for a decoder that cannot read the text tower's tokens; depth 0 is no decoder."""
    decoder, text = model.decoder, model.text
    causal = getattr(text, "causal", False)  # a tower without the option sees every word
    require(
        not decoder.depth or (causal and decoder.width == text.width and decoder.width % decoder.num_heads == 0),
        "config.model.decoder reads the text tower's tokens and predicts the next word: it needs "
        f"config.model.text.causal=True (it is {causal}) and the text tower's width of {text.width} (it has "
        f"{decoder.width}), a multiple of its num_heads={decoder.num_heads}.",
    )
