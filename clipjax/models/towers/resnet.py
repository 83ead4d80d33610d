"""CLIP's ResNets: a stem of three convolutions, average pools instead of strides, attention instead of a last pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ImageTowerConfig, require
from clipjax.config.fields import experiment, meaning, weights
from clipjax.config.ranges import DEPTH, RATE, WIDTH
from clipjax.models.attention import attention
from clipjax.models.conv import BatchNorm, Conv, average_pool, check_stages
from clipjax.models.layers import Linear, constrain
from clipjax.models.towers.tower import IMAGE, Tower, TowerOutput, no_hidden_states, square_image
from clipjax.models.transformer import rematerialised

EXPANSION = 4  # of a bottleneck


@dataclass(frozen=True)
class ResNetConfig(ImageTowerConfig):
    """The defaults are CLIP's RN50."""

    name: str = "resnet"
    width: int = 64  # of the first stage's bottlenecks; stage i is 2^i times as wide, and 4 times that between blocks
    stages: tuple[int, ...] = weights((3, 4, 6, 3), within=DEPTH)  # blocks of each
    num_heads: int = meaning(32, within=WIDTH)  # of the attention pool
    norm_momentum: float = experiment(0.9, within=RATE)  # share of BatchNorm's running statistics that a step keeps


class ResNet(nn.Module):
    """image [B, H, W, 3], normalised -> TowerOutput, tokens [B, H W / 1024, 32 width]: the last feature map by rows.

    Source: openai/CLIP clip/model.py ModifiedResNet; He et al. 1512.03385; anti-aliased strides after Zhang 1904.11486.
    Raises ConfigError for hidden_layers: it has none to give.
    """

    config: ResNetConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        c = self.config
        no_hidden_states(c.name, hidden_layers)
        x = image.astype(self.dtype)
        for i, (features, stride) in enumerate(((c.width // 2, 2), (c.width // 2, 1), (c.width, 1)), start=1):
            options = dict(padding=1, activations=self.activations, name=f"conv_{i}")
            x = Conv(features, 3, torch_conv_init, self.dtype, stride, **options)(x)
            x = nn.relu(BatchNorm(c.norm_eps, c.norm_momentum, name=f"bn_{i}")(x, train))
        x = average_pool(x, 2)
        block = rematerialised(Bottleneck, c.remat, static_argnums=(2,))
        for stage, depth in enumerate(c.stages):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                make = block(c, c.width << stage, stride, self.dtype, self.activations, name=f"stage_{stage}_block_{i}")
                x = make(x, train)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        pool = AttentionPool(c.num_heads, self.embed_dim, self.dtype, self.activations, name="attention_pool")
        return TowerOutput(pool(tokens), tokens)


class Bottleneck(nn.Module):
    """relu(x + conv 1 x 1 (conv 3 x 3 (conv 1 x 1 (x)))).

    A stride is an average pool before the last convolution and before the shortcut's.
    """

    config: ResNetConfig
    features: int
    stride: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out = self.features * EXPANSION

        def conv(name: str, features: int, size: int, x: jax.Array) -> jax.Array:
            pad = size // 2
            make = Conv(features, size, torch_conv_init, self.dtype, 1, pad, activations=self.activations, name=name)
            return make(x)

        def norm(name: str, x: jax.Array, scale_init: Callable = nn.initializers.ones) -> jax.Array:
            return BatchNorm(self.config.norm_eps, self.config.norm_momentum, scale_init, name=name)(x, train)

        y = nn.relu(norm("bn_1", conv("conv_1", self.features, 1, x)))
        y = nn.relu(norm("bn_2", conv("conv_2", self.features, 3, y)))
        y = average_pool(y, self.stride)
        # A block starts as the identity (Goyal et al. 1706.02677).
        y = norm("bn_3", conv("conv_3", out, 1, y), nn.initializers.zeros)
        if self.stride > 1 or x.shape[-1] != out:
            x = norm("shortcut_bn", conv("shortcut_conv", out, 1, average_pool(x, self.stride)))
        return constrain(nn.relu(x + y), self.activations)


class AttentionPool(nn.Module):
    """Attention of the mean token over itself and all tokens, with learned positions; x [B, L, C] -> [B, features]."""

    num_heads: int
    features: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normal, width = nn.initializers.normal, x.shape[-1]
        mean = x.astype(jnp.float32).mean(1, keepdims=True).astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1)
        positions = self.param("position_embedding", normal(width**-0.5), (x.shape[1], width))
        x = x + positions.astype(x.dtype)

        def linear(name: str, features: int, x: jax.Array) -> jax.Array:
            return constrain(Linear(features, normal(width**-0.5), dtype=self.dtype, name=name)(x), self.activations)

        with_heads = (x.shape[0], -1, self.num_heads, width // self.num_heads)
        q, k, v = (
            linear(name, width, source).reshape(with_heads)
            for name, source in (("query", x[:, :1]), ("key", x), ("value", x))
        )
        return linear("out", self.features, attention(q, k, v).reshape(x.shape[0], width))


def torch_conv_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Uniform within 1 / sqrt(fan-in): PyTorch's default for convolutions, which CLIP keeps."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def check(config: ResNetConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other. embed_dim may be any number."""
    check_stages(config.stages, config.image_size, IMAGE, config.name)
    require(
        32 * config.width % config.num_heads == 0,
        f"{IMAGE}.num_heads={config.num_heads} does not divide 32 width = {32 * config.width}, the channels that the "
        "attention pool reads.",
    )


TOWER = Tower(ResNet, ResNetConfig, check, square_image, running_statistics=True, heads=("attention_pool",))
