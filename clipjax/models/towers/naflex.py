"""SigLIP 2's NaFlex image tower (2502.14786): any aspect ratio, patches up to a budget, padding masked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ImageTowerConfig
from clipjax.models.hidden import Hidden
from clipjax.models.layers import LayerNorm, Linear, dot
from clipjax.models.pixels import Patches
from clipjax.models.pooling import MapHead
from clipjax.models.transformer import transformer


class NaFlexTransformer(nn.Module):
    """Patches, normalised -> ([B, embed_dim] not of unit length, tokens [B, N, width]), both in dtype.

    Patch k of an image of r x c patches lies in row k // c, column k % c; those from r c on are padding, which nothing
    attends to and no pool reads. The learned positions are a square grid of image_size / patch_size a side, resized to
    each image's r x c. Parameters are named and shaped as VisionTransformer's.
    Source: transformers modeling_siglip2.py; big_vision models/proj/image_text/naflex_vit.py.
    """

    config: ImageTowerConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, image: Patches, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> tuple:
        c = self.config
        normal = nn.initializers.normal
        patch_init = nn.initializers.lecun_normal() if c.init == "big_vision" else normal((3 * c.patch_size**2) ** -0.5)
        x = Linear(c.width, patch_init, c.patch_bias, dtype=self.dtype, name="patch_embed")(image.pixels)
        side = c.image_size // c.patch_size
        table = self.param("position_embedding", normal(c.width**-0.5), (side * side, c.width))
        weights = grid_weights(image.spatial_shape, x.shape[1], side)
        x = x + dot(weights.reshape(-1, side * side), table, self.dtype).reshape(x.shape)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        if c.pre_norm:
            x = LayerNorm(c.norm_eps, name="ln_pre")(x)
        mask = patch_mask(image.spatial_shape, x.shape[1])
        x, states = transformer(
            x,
            c,
            causal=False,
            dtype=self.dtype,
            train=train,
            activations=self.activations,
            mask=mask,
            hidden_layers=hidden_layers,
        )
        ln_post = LayerNorm(c.norm_eps, name="ln_post")
        tokens = ln_post(x)
        if c.pool == "map":
            x = MapHead(c.num_heads, c.mlp_dim, c.activation, c.norm_eps, self.dtype, name="map_head")(tokens, mask)
        else:
            x = (tokens * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True).astype(tokens.dtype)
        if c.projection:
            x = Linear(self.embed_dim, normal(c.width**-0.5), c.projection_bias, dtype=self.dtype, name="projection")(x)
        hidden = tuple(Hidden(state, ln_post(state)) for state in states)
        return (x, tokens, hidden) if hidden_layers else (x, tokens)


def patch_mask(spatial_shape: jax.Array, count: int) -> jax.Array:
    """spatial_shape [B, 2] int32 -> [B, count] bool, True for patches and False for padding."""
    return jnp.arange(count) < jnp.prod(spatial_shape, axis=1, keepdims=True)


def grid_weights(spatial_shape: jax.Array, count: int, side: int) -> jax.Array:
    """[B, count, side, side] float32: what patch k of each image takes of a grid's positions; sums to 1.

    Resizing is separable and linear: a triangle per axis, half-pixel centres, widened where the image has fewer patches
    than the grid (antialiasing), as torch's bilinear interpolation and jax.image.scale_and_translate. Shapes are static
    whatever the images are. Padding takes what the first patch takes.
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
