"""ConvNeXt as OpenCLIP's image towers: depthwise 7 x 7 convolutions and MLPs, LayerNorm, LayerScale."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clipjax.config import ImageTowerConfig
from clipjax.models.conv import Conv, drop_path
from clipjax.models.layers import LayerNorm, Linear, Mlp, constrain
from clipjax.models.transformer import rematerialised

LAYER_SCALE = 1e-6  # at the start
zeros = nn.initializers.zeros
normal = nn.initializers.normal(0.02)


class ConvNeXt(nn.Module):
    """image [B, H, W, 3], normalised -> ([B, embed_dim] not of unit length, tokens [B, H W / 1024, 8 width]) in dtype.

    config.stages blocks at widths width, 2 width, 4 width, 8 width. Pool, norm, then config.head: one linear map
    without bias, or an MLP of 2 embed_dim whose second map has none. The tokens are the last feature map, before the
    norm, row by row. Source: Liu et al. 2201.03545 as timm's ConvNeXt under open_clip's TimmModel.
    """

    config: ImageTowerConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        c = self.config

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
        return Linear(self.embed_dim, init, False, dtype=self.dtype, name="projection")(x), tokens


class ConvNeXtBlock(nn.Module):
    """x + LayerScale(MLP(LN(depthwise 7 x 7 (x))))."""

    config: ImageTowerConfig
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
