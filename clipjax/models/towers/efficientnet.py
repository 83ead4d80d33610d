"""EfficientNet B0 to B7: inverted bottlenecks with squeeze-and-excitation, without the classifier's convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ImageTowerConfig, require
from clipjax.config.fields import experiment, meaning, weights
from clipjax.config.ranges import COEFFICIENT, DEPTH_OR_ZERO, RATE
from clipjax.models.conv import BatchNorm, Conv, Pads, drop_path
from clipjax.models.layers import Linear, constrain
from clipjax.models.towers.tower import IMAGE, Tower, TowerOutput, check_projection, no_hidden_states, square_image
from clipjax.models.transformer import rematerialised

# B0: repeats, kernel size, stride, expansion, input and output channels of each stage (1905.11946, table 1).
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
STEM = 32
# He et al. 1502.01852. The fan-out of a depthwise kernel is k * k, which Flax calls its fan-in.
he_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Width and depth coefficients of the published models.
COEFFICIENTS = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}


@dataclass(frozen=True)
class EfficientNetConfig(ImageTowerConfig):
    """The defaults are B0's."""

    name: str = "efficientnet"
    width: int = 320  # of the last stage, which follows from width_coefficient
    norm_eps: float = 1e-3
    width_coefficient: float = weights(1.0, within=COEFFICIENT)
    depth_coefficient: float = weights(1.0, within=COEFFICIENT)
    # blocks with a stride of 2 whose input has an odd size
    depthwise_padding: tuple[int, ...] = meaning((), within=DEPTH_OR_ZERO)
    projection: bool = weights(True)  # linear map to embed_dim; False: width == embed_dim
    norm_momentum: float = experiment(0.99, within=RATE)  # share of BatchNorm's running statistics that a step keeps
    drop_path: float = experiment(0.0, within=RATE)


class BlockShape(NamedTuple):
    kernel_size: int
    stride: int
    expansion: int
    inputs: int
    outputs: int
    residual: bool
    even: bool  # pad a stride of 2 as for an even input: one row and column less above and left


class EfficientNet(nn.Module):
    """image [B, H, W, 3], normalised -> TowerOutput, tokens [B, L, width]: the last feature map, row by row.

    The mean of the tokens is pooled, through a linear map if config.projection. Source: Tan & Le 1905.11946; ALIGN
    (2102.05918) as in transformers' AlignVisionModel, except that stochastic depth drops whole examples, as in Tan &
    Le. Raises ConfigError for hidden_layers: it has none to give.
    """

    config: EfficientNetConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        c = self.config
        no_hidden_states(c.name, hidden_layers)
        stem = round_channels(STEM, c.width_coefficient)
        pads = ((0, 1), (0, 1))
        x = Conv(stem, 3, he_out, self.dtype, 2, pads, activations=self.activations, name="stem")(
            image.astype(self.dtype)
        )
        x = nn.swish(BatchNorm(c.norm_eps, c.norm_momentum, name="stem_bn")(x, train))
        shapes = block_shapes(c)
        block = rematerialised(InvertedBottleneck, c.remat, static_argnums=(2,))
        for i, shape in enumerate(shapes):
            rate = c.drop_path * i / len(shapes)
            x = block(c, shape, rate, self.dtype, self.activations, name=f"block_{i}")(x, train)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        x = tokens.astype(jnp.float32).mean(1).astype(x.dtype)
        if c.projection:
            normal = nn.initializers.normal(x.shape[-1] ** -0.5)
            x = Linear(self.embed_dim, normal, False, dtype=self.dtype, name="projection")(x)
        return TowerOutput(x, tokens)


class InvertedBottleneck(nn.Module):
    """conv 1 x 1 to expansion times the width, depthwise convolution, squeeze-and-excitation, conv 1 x 1 back.

    x is added if the block is a residual.
    """

    config: EfficientNetConfig
    shape: BlockShape
    drop_path: float
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, shape = self.config, self.shape
        hidden = shape.inputs * shape.expansion

        def conv(name: str, features: int, x: jax.Array, **options) -> jax.Array:
            return Conv(features, 1, he_out, self.dtype, activations=self.activations, name=name, **options)(x)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return BatchNorm(c.norm_eps, c.norm_momentum, name=name)(x, train)

        y = x
        if shape.expansion != 1:
            y = nn.swish(norm("expand_bn", conv("expand", hidden, y)))
        k = shape.kernel_size
        pads = padding(k, even=shape.stride == 2 and shape.even)
        options = dict(padding=pads, groups=hidden, activations=self.activations, name="depthwise")
        y = Conv(hidden, k, he_in, self.dtype, shape.stride, **options)(y)
        y = nn.swish(norm("depthwise_bn", y))
        squeezed = y.astype(jnp.float32).mean((1, 2), keepdims=True).astype(y.dtype)
        squeezed = nn.swish(conv("squeeze", max(1, shape.inputs // 4), squeezed, use_bias=True))
        y = y * nn.sigmoid(conv("excite", hidden, squeezed, use_bias=True))
        y = norm("project_bn", conv("project", shape.outputs, y))
        if shape.residual:
            y = x + drop_path(self, y, self.drop_path, train)
        return constrain(y, self.activations)


def block_shapes(config: EfficientNetConfig) -> list[BlockShape]:
    """Every block's shape: B0's stages, made wider and deeper by the coefficients."""
    shapes = []
    for repeats, kernel_size, stride, expansion, inputs, outputs in STAGES:
        inputs, outputs = (round_channels(n, config.width_coefficient) for n in (inputs, outputs))
        for i in range(math.ceil(config.depth_coefficient * repeats)):
            even = len(shapes) not in config.depthwise_padding
            shapes.append(BlockShape(kernel_size, stride, expansion, inputs, outputs, residual=i > 0, even=even))
            stride, inputs = 1, outputs
    return shapes


def round_channels(channels: int, coefficient: float) -> int:
    """channels * coefficient, rounded to a multiple of 8 that is at most a tenth less."""
    wanted = channels * coefficient
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def padding(kernel_size: int, *, even: bool) -> Pads:
    """TensorFlow's "SAME" for a stride of 1 or an odd input; even: for a stride of 2 and an even input."""
    low, high = kernel_size // 2 - even, kernel_size // 2
    return ((low, high), (low, high))


def check(config: EfficientNetConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other or embed_dim."""
    width = block_shapes(config)[-1].outputs
    require(
        config.width == width,
        f"{IMAGE}.width={config.width}, but with width_coefficient={config.width_coefficient} the last stage is "
        f"{width} wide; set width={width}.",
    )
    check_projection(config.projection, "projection=True", config.width, embed_dim, IMAGE)


TOWER = Tower(
    EfficientNet,
    EfficientNetConfig,
    check,
    square_image,
    running_statistics=True,
    random=("drop_path",),
    heads=("projection",),
)
