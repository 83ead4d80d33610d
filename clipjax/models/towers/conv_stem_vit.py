"""A vision transformer whose patches are made by a few convolutions with BatchNorm: MobileCLIP-B (2311.17049)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
from flax import linen as nn

from clipjax.config import require
from clipjax.config.fields import experiment, weights
from clipjax.config.ranges import PIXELS, RATE, WIDTH
from clipjax.models import tower_flops
from clipjax.models.activations import ACTIVATIONS
from clipjax.models.conv import BatchNorm, Conv
from clipjax.models.towers import vit
from clipjax.models.towers.tower import IMAGE, Tower, square_image

STEM_EPS = 1e-5  # of BatchNorm


@dataclass(frozen=True)
class ConvStemViTConfig(vit.ViTConfig):
    """The defaults are MobileCLIP-B's stem; the rest are the options of `vit`. patch_bias: of the last convolution."""

    name: str = "conv_stem_vit"
    patch_size: int = 16  # pixels; the product of stem_strides
    patch_bias: bool = True
    stem_strides: tuple[int, ...] = weights((4, 2, 2), within=PIXELS)  # of the convolutions; also their kernels' sides
    stem_width: int = weights(192, within=WIDTH)  # channels of all convolutions but the last
    norm_momentum: float = experiment(0.9, within=RATE)  # share of BatchNorm's running statistics that a step keeps


class ConvStemViT(vit.VisionTransformer):
    """image [B, H, W, 3], normalised -> TowerOutput, as VisionTransformer's.

    Each convolution but the last is followed by BatchNorm and the activation. Source: apple/ml-mobileclip, as timm's
    ConvStem under open_clip's TimmModel.
    """

    config: ConvStemViTConfig

    def patches(self, image: jax.Array, train: bool) -> jax.Array:
        """image [B, H, W, 3] -> [B, H W / patch_size^2, width], row by row."""
        c, x = self.config, image.astype(self.dtype)
        options = dict(kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype, activations=self.activations)
        *strides, last = c.stem_strides
        for i, stride in enumerate(strides, start=1):
            x = Conv(c.stem_width, stride, stride=stride, name=f"conv_{i}", **options)(x)
            x = ACTIVATIONS[c.activation](BatchNorm(STEM_EPS, c.norm_momentum, name=f"bn_{i}")(x, train))
        name = f"conv_{len(c.stem_strides)}"
        x = Conv(c.width, last, stride=last, use_bias=c.patch_bias, name=name, **options)(x)
        return x.reshape(x.shape[0], -1, c.width)


def check(config: ConvStemViTConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other or embed_dim."""
    require(
        len(config.stem_strides) > 1 and math.prod(config.stem_strides) == config.patch_size,
        f"{IMAGE}.stem_strides={config.stem_strides} must be at least two numbers whose product is "
        f"patch_size={config.patch_size}.",
    )
    vit.check(config, embed_dim)


def count_flops(config: ConvStemViTConfig, embed_dim: int) -> tower_flops.TowerFlops:
    """A ViT's, with the stem's convolutions instead of the patch embedding."""
    side, channels, stem = config.image_size, 3, 0
    for i, stride in enumerate(config.stem_strides, start=1):
        width = config.width if i == len(config.stem_strides) else config.stem_width
        side //= stride
        stem += 2 * side**2 * stride**2 * channels * width
        channels = width
    flops = vit.count_flops(config, embed_dim)
    embedding = vit.patch_products(config, (config.image_size // config.patch_size) ** 2)
    return flops._replace(products=flops.products - embedding + stem)


TOWER = Tower(
    ConvStemViT,
    ConvStemViTConfig,
    check,
    square_image,
    count_flops,
    **{
        name: getattr(vit.TOWER, name)
        for name in ("hidden_states", "tokens_optional", "tensor_axis", "random", "heads")
    },
    running_statistics=True,
)
