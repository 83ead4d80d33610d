"""Vision transformers: CLIP's (class token, pre-norm, projection) and SigLIP's (MAP head) are settings of one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ImageTowerConfig
from clipjax.models.layers import LayerNorm, Linear, MapHead, PatchEmbed, sincos_2d
from clipjax.models.transformer import transformer


class VisionTransformer(nn.Module):
    """image [B, H, W, 3], normalised -> ([B, embed_dim] not of unit length, tokens [B, L, width]), both in dtype.

    The tokens are the last block's, after ln_post; with pool="cls" the first is the class token.
    """

    config: ImageTowerConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        c = self.config
        normal = nn.initializers.normal
        patch_init = nn.initializers.lecun_normal() if c.init == "big_vision" else normal((3 * c.patch_size**2) ** -0.5)
        x = PatchEmbed(c.patch_size, c.width, c.patch_bias, patch_init, self.dtype, name="patch_embed")(image)
        if c.pool == "cls":
            cls = self.param("cls_token", normal(c.width**-0.5), (c.width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], axis=1)
        x = x + position_embedding(self, image.shape, x.shape[1]).astype(x.dtype)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        if c.pre_norm:
            x = LayerNorm(c.norm_eps, name="ln_pre")(x)
        x = transformer(x, c, causal=False, dtype=self.dtype, train=train, activations=self.activations)
        ln_post = LayerNorm(c.norm_eps, name="ln_post")
        tokens = ln_post(x)
        if c.pool == "cls":
            x = ln_post(x[:, 0])  # not tokens[:, 0]: where nobody asks for the tokens, they are not normalised
        elif c.pool == "map":
            x = MapHead(c.num_heads, c.mlp_dim, c.activation, c.norm_eps, self.dtype, name="map_head")(tokens)
        else:
            x = tokens.mean(axis=1)
        if c.projection:
            x = Linear(self.embed_dim, normal(c.width**-0.5), False, dtype=self.dtype, name="projection")(x)
        return x, tokens


def position_embedding(tower: nn.Module, image_shape: tuple[int, ...], length: int) -> jax.Array:
    """[length, width] float32; learned, or fixed sin and cos with zeros for the class token."""
    c = tower.config
    if c.position == "learned":
        return tower.param("position_embedding", nn.initializers.normal(c.width**-0.5), (length, c.width))
    rows, columns = image_shape[1] // c.patch_size, image_shape[2] // c.patch_size
    grid = sincos_2d(rows, columns, c.width)
    return jnp.pad(grid, ((length - len(grid), 0), (0, 0)))
