"""Two independent towers that embed into one space, and the learned temperature of their similarities."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ModelConfig
from clipjax.models.decoder import CaptionDecoder, check_decoder
from clipjax.models.pixels import Patches
from clipjax.models.towers import image_tower, text_tower
from clipjax.models.towers.absent import refusal
from clipjax.models.towers.text import end_of_text
from clipjax.models.towers.tower import Hidden, TowerOutput


@flax.struct.dataclass
class DualEncoderOutput:
    """Embeddings of unit length, and what else the losses need."""

    image_embedding: jax.Array | None  # [B, embed_dim] float32, L2-normalised; None without images
    text_embedding: jax.Array | None  # [B, embed_dim] float32, L2-normalised; None without texts
    logit_scale: jax.Array  # () float32, the scale itself (exp of the parameter)
    logit_bias: jax.Array  # () float32, 0 if the model has none
    caption_nll: jax.Array | None = None  # [B] float32, with a decoder and both inputs: see CaptionDecoder
    image_hidden: tuple[Hidden, ...] = ()  # of the hidden_layers asked for, in their order
    text_hidden: tuple[Hidden, ...] = ()


class DualEncoder(nn.Module):
    """image [B, H, W, 3] normalised pixels or Patches, and/or text [B, L] int32 -> DualEncoderOutput.

    hidden_layers: the layers whose states the output also holds, before and after the tower's last norm. They are
    numbered like transformers' hidden_states: 0 is what enters the first block, -1 what leaves the last. () costs
    nothing.

    Parameters: image, text, logit_scale (its logarithm), and logit_bias and decoder if config has them. The scale is
    clipped by the train step after each update, not here. A model of one tower has the parameters of that tower alone.
    Raises ConfigError for an unknown tower, for an input whose tower the model lacks, a decoder that the text tower
    does not fit, and hidden_layers that a tower does not have.
    """

    config: ModelConfig
    activations: jax.sharding.Sharding | None = None  # of [batch, ...]; None: left to the compiler
    # blocks of the image and the text tower that get no gradient, counted from the first; for scanned blocks
    frozen_blocks: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(
        self,
        image: jax.Array | Patches | None = None,
        text: jax.Array | None = None,
        train: bool = False,
        hidden_layers: tuple[int, ...] = (),
    ) -> DualEncoderOutput:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        rows = {"image": image_tower(config.image), "text": text_tower(config.text)}
        check_decoder(config)

        def run(side: str, x: jax.Array | Patches) -> TowerOutput:
            if rows[side].absent and not self.is_initializing():
                raise refusal(side)
            options = getattr(config, side), config.embed_dim, dtype, self.activations
            more = {"frozen_blocks": count} if (count := self.frozen_blocks[side == "text"]) else {}
            more |= {"give_tokens": config.decoder.depth > 0} if rows[side].tokens_optional else {}
            return rows[side].module(*options, name=side, **more)(x, train, hidden_layers)

        seen = None if image is None else run("image", image)
        read = None if text is None else run("text", text)
        nll = None
        if config.decoder.depth and seen and read:
            decoder = CaptionDecoder(config.decoder, config.text.vocab_size, dtype, self.activations, name="decoder")
            nll = decoder(read.tokens, seen.tokens, text, counted_tokens(text, config.text.eos_id), train, seen.mask)
        constant = nn.initializers.constant
        both = not any(row.absent for row in rows.values())
        log_scale, bias = jnp.log(config.logit_scale_init), jnp.zeros(())
        if both:
            log_scale = self.param("logit_scale", constant(log_scale), ())
        if both and config.logit_bias_init is not None:
            bias = self.param("logit_bias", constant(config.logit_bias_init), ())
        return DualEncoderOutput(
            image_embedding=unit_length(seen.pooled) if seen else None,
            text_embedding=unit_length(read.pooled) if read else None,
            logit_scale=jnp.exp(log_scale),
            logit_bias=bias,
            caption_nll=nll,
            image_hidden=seen.hidden if seen else (),
            text_hidden=read.hidden if read else (),
        )

    def caption_tokens(self, text: jax.Array) -> jax.Array:
        """[B] float32: how many tokens caption_nll sums over; needs no parameters."""
        return counted_tokens(text, self.config.text.eos_id).sum(axis=1, dtype=jnp.float32)


def counted_tokens(text: jax.Array, eos_id: int) -> jax.Array:
    """[B, L - 1] bool: which of text[:, 1:] belong to the caption: the end-of-text token does, padding does not."""
    return jnp.arange(1, text.shape[1]) <= end_of_text(text, eos_id)[:, None]


def unit_length(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, in float32; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
