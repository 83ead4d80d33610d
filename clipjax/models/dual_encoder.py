"""Two independent towers into one embedding space, with the learned temperature between them."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ModelConfig, nearest, require
from clipjax.models.decoder import CaptionDecoder
from clipjax.models.hidden import Hidden
from clipjax.models.pixels import Patches
from clipjax.models.towers.bert import BertEncoder
from clipjax.models.towers.convnext import ConvNeXt
from clipjax.models.towers.efficientnet import EfficientNet
from clipjax.models.towers.naflex import NaFlexTransformer
from clipjax.models.towers.resnet import ResNet
from clipjax.models.towers.text import TextTransformer, end_of_text
from clipjax.models.towers.vit import VisionTransformer

# name -> linen module made from (tower config, embed_dim, dtype, sharding of activations)
IMAGE_TOWERS = {
    "vit": VisionTransformer,
    "naflex": NaFlexTransformer,
    "resnet": ResNet,
    "efficientnet": EfficientNet,
    "convnext": ConvNeXt,
}
LAYERED_TOWERS = ("vit", "naflex", "transformer")  # those that give hidden states
CONV_TOWERS = ("resnet", "efficientnet", "convnext")
BATCH_NORM_TOWERS = ("resnet", "efficientnet")  # those with running statistics, collection "batch_stats"
TEXT_TOWERS = {"transformer": TextTransformer, "bert": BertEncoder}


@flax.struct.dataclass
class DualEncoderOutput:
    image_embedding: jax.Array | None  # [B, embed_dim] float32, L2-normalised; None without images
    text_embedding: jax.Array | None  # [B, embed_dim] float32, L2-normalised; None without texts
    logit_scale: jax.Array  # () float32, the scale itself (exp of the parameter)
    logit_bias: jax.Array  # () float32, 0 where the model has none
    caption_nll: jax.Array | None = None  # [B] float32, with a decoder and both inputs: see CaptionDecoder
    image_hidden: tuple[Hidden, ...] = ()  # of the hidden_layers asked for, in their order
    text_hidden: tuple[Hidden, ...] = ()


class DualEncoder(nn.Module):
    """image [B, H, W, 3] normalised pixels (naflex: Patches) and/or text [B, L] int32 -> DualEncoderOutput.

    hidden_layers: whose states the output holds too, counted as transformers counts hidden_states (0: what enters the
    first block, -1: what leaves the last), before and after the tower's last norm. () costs nothing.

    Parameters: image, text, logit_scale (its logarithm), and logit_bias and decoder where config has them. The scale is
    not clipped here but after each update, by the train step. Raises ConfigError for an unknown tower.
    """

    config: ModelConfig
    activations: jax.sharding.Sharding | None = None  # of [batch, ...]; None: left to the compiler

    @nn.compact
    def __call__(
        self,
        image: jax.Array | Patches | None = None,
        text: jax.Array | None = None,
        train: bool = False,
        hidden_layers: tuple[int, ...] = (),
    ) -> DualEncoderOutput:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        for side, name, table in (
            ("image", config.image.name, IMAGE_TOWERS),
            ("text", config.text.name, TEXT_TOWERS),
        ):
            require(name in table, f"config.model.{side}.name='{name}' is unknown.{nearest(name, table)}")
        image_embedding = text_embedding = nll = None
        image_hidden = text_hidden = ()
        if image is not None:
            tower = IMAGE_TOWERS[config.image.name](
                config.image, config.embed_dim, dtype, self.activations, name="image"
            )
            pooled, image_tokens, image_hidden = run_tower(tower, image, train, hidden_layers)
            image_embedding = unit_length(pooled)
        if text is not None:
            make = TEXT_TOWERS[config.text.name]
            tower = make(config.text, config.embed_dim, dtype, self.activations, name="text")
            pooled, text_tokens, text_hidden = run_tower(tower, text, train, hidden_layers)
            text_embedding = unit_length(pooled)
        if config.decoder.depth and image is not None and text is not None:
            decoder = CaptionDecoder(config.decoder, config.text.vocab_size, dtype, self.activations, name="decoder")
            nll = decoder(text_tokens, image_tokens, text, counted_tokens(text, config.text.eos_id), train)
        constant = nn.initializers.constant
        log_scale = self.param("logit_scale", constant(jnp.log(config.logit_scale_init)), ())
        bias = jnp.zeros(())
        if config.logit_bias_init is not None:
            bias = self.param("logit_bias", constant(config.logit_bias_init), ())
        return DualEncoderOutput(
            image_embedding, text_embedding, jnp.exp(log_scale), bias, nll, image_hidden, text_hidden
        )

    def caption_tokens(self, text: jax.Array) -> jax.Array:
        """[B] float32: how many tokens caption_nll sums over; needs no parameters."""
        return counted_tokens(text, self.config.text.eos_id).sum(axis=1, dtype=jnp.float32)


def run_tower(tower: nn.Module, x: Any, train: bool, hidden_layers: tuple[int, ...]) -> tuple:
    """(pooled, tokens, hidden states). Raises ConfigError where a tower has none to give."""
    if not hidden_layers:
        return (*tower(x, train), ())
    name = tower.config.name
    require(name in LAYERED_TOWERS, f"hidden_layers={hidden_layers}: tower '{name}' has no states of layers to give.")
    return tower(x, train, hidden_layers)


def counted_tokens(text: jax.Array, eos_id: int) -> jax.Array:
    """[B, L - 1] bool: which of text[:, 1:] a caption consists of, its end included and the padding not."""
    return jnp.arange(1, text.shape[1]) <= end_of_text(text, eos_id)[:, None]


def unit_length(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, in float32; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
