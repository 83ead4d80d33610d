"""ConvNeXt as OpenCLIP's image towers: depthwise 7 x 7 convolutions and MLPs, LayerNorm, LayerScale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.config import ImageTowerConfig
from clipjax.config.fields import experiment, weights
from clipjax.config.ranges import DEPTH, RATE
from clipjax.models.conv import Conv, check_stages, drop_path
from clipjax.models.layers import LayerNorm, Linear, Mlp, constrain
from clipjax.models.towers.tower import IMAGE, Tower, TowerOutput, no_hidden_states, square_image
from clipjax.models.transformer import rematerialised

LAYER_SCALE = 1e-6  # initial value
zeros = nn.initializers.zeros
normal = nn.initializers.normal(0.02)


@dataclass(frozen=True)
class ConvNeXtConfig(ImageTowerConfig):
    """The defaults are timm's convnext_base."""

    name: str = "convnext"
    width: int = 128  # of the first stage; stage i is 2^i times as wide
    norm_eps: float = 1e-6
    stages: tuple[int, ...] = weights((3, 3, 27, 3), within=DEPTH)  # blocks of each
    head: Literal["linear", "mlp"] = weights("linear")  # what maps to embed_dim
    drop_path: float = experiment(0.0, within=RATE)  # rate of the last block; it grows linearly from 0


class ConvNeXt(nn.Module):
    """image [B, H, W, 3], normalised -> TowerOutput, tokens [B, H W / 1024, 8 width].

    Pool, norm, then config.head: one linear map without bias, or an MLP of 2 embed_dim whose second map has no bias.
    The tokens are the last feature map, before the norm, row by row. Source: Liu et al. 2201.03545 as timm's ConvNeXt
    under open_clip's TimmModel. Raises ConfigError for hidden_layers: it has none to give.
    """

    config: ConvNeXtConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        c = self.config
        no_hidden_states(c.name, hidden_layers)

        def conv(name: str, features: int, size: int, x: jax.Array) -> jax.Array:
            options = dict(stride=size, use_bias=True, activations=self.activations, name=name)
            return Conv(features, size, normal, self.dtype, **options)(x)

        x = LayerNorm(c.norm_eps, name="stem_ln")(conv("stem", c.width, 4, image.astype(self.dtype)))
        block = rematerialised(ConvNeXtBlock, c.remat, static_argnums=(2,))
        rates = iter(np.linspace(0, c.drop_path, sum(c.stages)).tolist())
        for stage, depth in enumerate(c.stages):
            if stage > 0:
                x = LayerNorm(c.norm_eps, name=f"downsample_{stage}_ln")(x)
                x = conv(f"downsample_{stage}", c.width << stage, 2, x)
            for i in range(depth):
                x = block(c, next(rates), self.dtype, self.activations, name=f"stage_{stage}_block_{i}")(x, train)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        x = tokens.astype(jnp.float32).mean(1).astype(x.dtype)
        x = LayerNorm(c.norm_eps, name="ln_head")(x)
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's for a linear map
        if c.head == "mlp":
            x = nn.gelu(Linear(2 * self.embed_dim, init, dtype=self.dtype, name="head_up")(x), approximate=False)
        x = Linear(self.embed_dim, init, False, dtype=self.dtype, name="projection")(x)
        return TowerOutput(x, tokens)


class ConvNeXtBlock(nn.Module):
    """x + LayerScale(MLP(LN(depthwise 7 x 7 (x))))."""

    config: ConvNeXtConfig
    drop_path: float
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, width = self.config, x.shape[-1]
        options = dict(padding=3, groups=width, use_bias=True, activations=self.activations, name="depthwise")
        y = Conv(width, 7, normal, self.dtype, **options)(x)
        y = LayerNorm(c.norm_eps, name="ln")(y)
        y = Mlp(4 * width, "gelu", normal, normal, zeros, self.dtype, name="mlp")(y)
        y = LayerScale(name="layer_scale")(y)
        return constrain(x + drop_path(self, y, self.drop_path, train), self.activations)


class LayerScale(nn.Module):
    """x times a learned factor per channel (Touvron et al. 2103.17239)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.constant(LAYER_SCALE), x.shape[-1:])
        return x * scale.astype(x.dtype)


def check(config: ConvNeXtConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other. embed_dim may be any number."""
    check_stages(config.stages, config.image_size, IMAGE, config.name)


TOWER = Tower(
    ConvNeXt, ConvNeXtConfig, check, square_image, random=("drop_path",), heads=("ln_head", "head_up", "projection")
)
