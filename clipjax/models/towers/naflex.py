"""SigLIP 2's NaFlex image tower (2502.14786): any aspect ratio, patches up to a budget, padding masked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import PatchBudget, require
from clipjax.config.fields import MODEL, experiment, meaning
from clipjax.config.ranges import POSITIONS
from clipjax.models import tower_flops
from clipjax.models.layers import LayerNorm, Linear, dot
from clipjax.models.pixels import Patches
from clipjax.models.towers.tower import IMAGE, Columns, Hidden, Tower, TowerOutput, check_projection
from clipjax.models.towers.vit import (
    PatchTowerConfig,
    ViTConfig,
    check_patches,
    head_products,
    map_head,
    patch_init,
    patch_products,
)
from clipjax.models.transformer import transformer


@dataclass(frozen=True)
class NaFlexConfig(PatchTowerConfig):
    """image_size: the side of the square grid of positions, in pixels; images have their own sizes."""

    name: str = "naflex"
    pool: Literal["map", "gap"] = meaning("map")
    # the most patches an image has; batches are padded to it
    max_patches: int = experiment(256, within=POSITIONS, fixed=MODEL)
    # each training batch draws one of these as its budget (SigLIP 2: 128 to 1024); (): always max_patches
    patch_budgets: tuple[int, ...] = experiment((), within=POSITIONS)


class NaFlexTransformer(nn.Module):
    """Patches, normalised -> TowerOutput, tokens [B, N, width].

    Patch k of an image of r x c patches lies in row k // c, column k % c. Patches from number r c on are padding, which
    nothing attends to and no pool reads. The learned positions are a square grid of image_size / patch_size a side,
    resized to each image's r x c. Parameters are named and shaped as VisionTransformer's.
    Source: transformers modeling_siglip2.py; big_vision models/proj/image_text/naflex_vit.py.
    """

    config: NaFlexConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None
    frozen_blocks: int = 0

    @nn.compact
    def __call__(self, image: Patches, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        c = self.config
        normal = nn.initializers.normal
        x = Linear(c.width, patch_init(c), c.patch_bias, dtype=self.dtype, name="patch_embed")(image.pixels)
        side = c.image_size // c.patch_size
        table = self.param("position_embedding", normal(c.width**-0.5), (side * side, c.width))
        shares = grid_weights(image.spatial_shape, x.shape[1], side)
        x = x + dot(shares.reshape(-1, side * side), table, self.dtype).reshape(x.shape)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        if c.pre_norm:
            x = LayerNorm(c.norm_eps, name="ln_pre")(x)
        mask = patch_mask(image.spatial_shape, x.shape[1])
        count = jnp.prod(image.spatial_shape, axis=1).astype(jnp.int32)
        x, states = transformer(
            x,
            c,
            causal=False,
            dtype=self.dtype,
            train=train,
            activations=self.activations,
            mask=count,
            hidden_layers=hidden_layers,
            frozen_blocks=self.frozen_blocks,
        )
        ln_post = LayerNorm(c.norm_eps, name="ln_post")
        tokens = ln_post(x)
        if c.pool == "map":
            x = map_head(c, self.dtype, self.activations)(tokens, mask)
        else:
            x = (tokens * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True).astype(tokens.dtype)
        if c.projection:
            x = Linear(self.embed_dim, normal(c.width**-0.5), c.projection_bias, dtype=self.dtype, name="projection")(x)
        hidden = tuple(Hidden(state, ln_post(state)) for state in states)
        return TowerOutput(x, tokens, hidden, count)


def patch_mask(spatial_shape: jax.Array, count: int) -> jax.Array:
    """spatial_shape [B, 2] int32 -> [B, count] bool, True for patches and False for padding."""
    return jnp.arange(count) < jnp.prod(spatial_shape, axis=1, keepdims=True)


def grid_weights(spatial_shape: jax.Array, count: int, side: int) -> jax.Array:
    """[B, count, side, side] float32: the share of each grid position in the position of patch k; sums to 1.

    Resizing is separable and linear: a triangle per axis, half-pixel centres, widened if the image has fewer patches
    than the grid (antialiasing), as torch's bilinear interpolation and jax.image.scale_and_translate do. Shapes are
    static whatever the images are. Padding gets the first patch's position.
    """
    size = spatial_shape.astype(jnp.int32)[:, None]
    k = jnp.arange(count)[None, :]
    columns = size[:, :, 1]
    at = jnp.stack([k // columns, k % columns], axis=-1) * patch_mask(spatial_shape, count)[:, :, None]
    scale = side / size.astype(jnp.float32)
    center = (at + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(side) - center[..., None]) / jnp.maximum(scale, 1.0)[..., None]
    weights = jnp.maximum(1.0 - distance, 0.0)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights[:, :, 0, :, None] * weights[:, :, 1, None, :]


def naflex_of(vit: ViTConfig, **changes) -> NaFlexConfig:
    """The NaFlex tower that has the same parameters as `vit`; SigLIP 2 has both kinds. changes: fields to set.

    Raises ConfigError for an option of vit that NaFlex does not have.
    """
    own = {field.name for field in dataclasses.fields(NaFlexConfig)}
    default = ViTConfig()
    other = [name for name, value in vars(vit).items() if name not in own and value != getattr(default, name)]
    require(not other, f"{IMAGE}.name='naflex' has no {', '.join(other)}, which this tower sets.")
    shared = {name: value for name, value in vars(vit).items() if name in own and name != "name"}
    return NaFlexConfig(**{**shared, **changes})


def check(config: NaFlexConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other or embed_dim."""
    check_patches(config)
    check_budgets(config)
    check_projection(config.projection, "projection=True", config.width, embed_dim, IMAGE)
    require(
        config.pool in ("map", "gap") and config.norm == "layer",
        f"{IMAGE}.name='{config.name}' with pool='{config.pool}', norm='{config.norm}': it pools by 'map' or 'gap' and "
        "has norm='layer'.",
    )


def check_budgets(config: NaFlexConfig) -> None:
    """Refuses budgets of which no program, or too slow a one, can be made. Raises ConfigError."""
    bad = [n for n in config.patch_budgets if n > config.max_patches or (n < config.max_patches and n % 8)]
    require(
        not bad,
        f"{IMAGE}.patch_budgets={config.patch_budgets}: {', '.join(map(str, bad))} is neither a multiple of 8 below "
        f"max_patches={config.max_patches} nor {config.max_patches} itself. Raise max_patches, or use smaller budgets.",
    )


def columns(config: NaFlexConfig, batch: int) -> Columns:
    """Patches up to the budget, and each image's rows and columns of them; see data/images/naflex.py."""
    patches = (batch, config.max_patches, 3 * config.patch_size**2)
    return {"image": (patches, jnp.uint8), "spatial_shape": ((batch, 2), jnp.int32)}


def count_flops(config: NaFlexConfig, embed_dim: int) -> tower_flops.TowerFlops:
    """Of an image that fills the budget."""
    c, length = config, config.max_patches
    products = tower_flops.block_products(c, length) + patch_products(c, length) + head_products(c, length, embed_dim)
    return tower_flops.TowerFlops(products, tower_flops.self_attention(c.depth, c.width, length), (length, c.width))


TOWER = Tower(
    NaFlexTransformer,
    NaFlexConfig,
    check,
    columns,
    count_flops,
    hidden_states=True,
    tensor_axis=("num_heads", "mlp_dim"),
    random=("dropout", "drop_path"),
    patch_budget=lambda config: PatchBudget(config.patch_size, config.max_patches, config.patch_budgets),
    heads=("ln_post", "map_head", "projection"),
)
