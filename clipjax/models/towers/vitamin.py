"""ViTamin (2404.02132): two stages of inverted residual convolutions, then a vision transformer of patches of 16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from clipjax.config import require
from clipjax.config.fields import weights
from clipjax.config.ranges import DEPTH, WIDTH
from clipjax.models import tower_flops
from clipjax.models.activations import ACTIVATIONS
from clipjax.models.conv import Conv
from clipjax.models.layers import LayerNorm
from clipjax.models.towers import vit
from clipjax.models.towers.tower import IMAGE, Tower, square_image

EXPANSION = 4  # of an inverted residual block
STAGES = 2


@dataclass(frozen=True)
class ViTaminConfig(vit.ViTConfig):
    """The defaults are ViTamin-S's stages and the options of `vit` that all ViTamin have."""

    name: str = "vitamin"
    patch_size: int = 16  # pixels; the convolutions halve an image four times
    pool: Literal["gap"] = "gap"
    norm_after_pool: bool = True
    pre_norm: bool = False
    norm_eps: float = 1e-6
    mlp: Literal["geglu"] = "geglu"
    mlp_first_norm: bool = True
    stage_widths: tuple[int, ...] = weights((64, 128), within=WIDTH)  # channels; the stem's are the first stage's
    stage_depths: tuple[int, ...] = weights((2, 4), within=DEPTH)  # blocks


class ViTamin(vit.VisionTransformer):
    """image [B, H, W, 3], normalised -> TowerOutput, as VisionTransformer's.

    Source: Beckschen/ViTamin as timm's vitamin.py under open_clip's TimmModel. Norms are LayerNorms over channels.
    """

    config: ViTaminConfig

    def patches(self, image: jax.Array, train: bool) -> jax.Array:
        """image [B, H, W, 3] -> [B, H W / 256, width], row by row."""
        c, x = self.config, image.astype(self.dtype)
        x = self.conv("conv_1", c.stage_widths[0], 3, x, stride=2)
        x = ACTIVATIONS[c.activation](LayerNorm(c.norm_eps, name="ln_stem")(x))
        x = self.conv("conv_2", c.stage_widths[0], 3, x)
        for stage, (width, depth) in enumerate(zip(c.stage_widths, c.stage_depths, strict=True)):
            for i in range(depth):
                x = self.block(f"stage_{stage}_{i}", width, 1 if i else 2, x)
        x = LayerNorm(c.norm_eps, name="ln_stages")(x)
        return self.conv("conv_3", c.width, 3, x, stride=2).reshape(x.shape[0], -1, c.width)

    def block(self, name: str, width: int, stride: int, x: jax.Array) -> jax.Array:
        """x + conv 1 x 1 (depthwise 3 x 3 (conv 1 x 1 (LN(x)))); a stride is also an average pool of the shortcut."""
        activation, hidden = ACTIVATIONS[self.config.activation], EXPANSION * width
        y = LayerNorm(self.config.norm_eps, name=f"{name}_ln")(x)
        y = activation(self.conv(f"{name}_conv_1", hidden, 1, y))
        y = activation(self.conv(f"{name}_depthwise", hidden, 3, y, stride=stride, groups=hidden))
        y = self.conv(f"{name}_conv_2", width, 1, y)
        x = average_pool_3(x) if stride > 1 else x
        return y + (self.conv(f"{name}_shortcut_conv", width, 1, x) if x.shape[-1] != width else x)

    def conv(self, name: str, features: int, size: int, x: jax.Array, **options: int) -> jax.Array:
        """A convolution with a bias, padded by half of its kernel."""
        shared = dict(use_bias=True, activations=self.activations, name=name)
        return Conv(features, size, fan_out_init, self.dtype, padding=size // 2, **shared, **options)(x)


def fan_out_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Normal with variance 2 / (kernel area * output channels per group); shape [k, k, in per group, out]."""
    groups_fan = shape[0] * shape[1] * (shape[3] if shape[2] > 1 else 1)
    return jax.random.normal(key, shape, dtype) * (2 / groups_fan) ** 0.5


def average_pool_3(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> means of 3 x 3 pixels at every second one, of those inside the image alone, in float32."""
    window, strides, pads = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    add = lambda a: jax.lax.reduce_window(a, 0.0, jax.lax.add, window, strides, pads)  # noqa: E731
    return (add(x.astype(jnp.float32)) / add(jnp.ones((1, *x.shape[1:3], 1)))).astype(x.dtype)


def check(config: ViTaminConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other or embed_dim."""
    require(
        len(config.stage_widths) == len(config.stage_depths) == STAGES and config.patch_size == 16,
        f"{IMAGE}.name='{config.name}' has {STAGES} stages and patches of 16 pixels, not "
        f"stage_widths={config.stage_widths}, stage_depths={config.stage_depths}, patch_size={config.patch_size}.",
    )
    require(
        config.image_size % config.patch_size == 0,
        f"{IMAGE}.image_size={config.image_size} must be a multiple of 16, the product of the strides.",
    )
    vit.check(config, embed_dim)


def count_flops(config: ViTaminConfig, embed_dim: int) -> tower_flops.TowerFlops:
    """A ViT's, with the convolutions instead of the patch embedding."""
    side, channels = config.image_size // 2, config.stage_widths[0]
    total = 2 * side**2 * 9 * (3 * channels + channels**2)
    for width, depth in zip(config.stage_widths, config.stage_depths, strict=True):
        for i in range(depth):
            before, side, hidden = side, side if i else side // 2, EXPANSION * width
            total += 2 * before**2 * channels * hidden + 2 * side**2 * hidden * (9 + width)
            total += 2 * side**2 * channels * width if channels != width else 0
            channels = width
    patches = (config.image_size // config.patch_size) ** 2
    total += 2 * patches * 9 * channels * config.width
    flops = vit.count_flops(config, embed_dim)
    return flops._replace(products=flops.products - vit.patch_products(config, patches) + total)


TOWER = Tower(
    ViTamin,
    ViTaminConfig,
    check,
    square_image,
    count_flops,
    **{name: getattr(vit.TOWER, name) for name in ("hidden_states", "tensor_axis", "random", "heads")},
)
