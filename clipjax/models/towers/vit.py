"""Vision transformers: CLIP's (class token, pre-norm, projection) and SigLIP's (MAP head) are settings of one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import ImageTowerConfig
from clipjax.models.hidden import Hidden
from clipjax.models.layers import NORMS, Linear, PatchEmbed
from clipjax.models.pooling import MapHead, pool_by_attention
from clipjax.models.position import sincos_2d
from clipjax.models.rotary import Rotation, rotary_2d
from clipjax.models.transformer import transformer


class VisionTransformer(nn.Module):
    """image [B, H, W, 3], normalised -> ([B, embed_dim] not of unit length, tokens [B, L, width]), both in dtype.

    The tokens are the last block's, after ln_post, the class token first where there is one; with norm_after_pool they
    are not normalised. The attentional poolers make their own, [B, N, embed_dim]. hidden_layers: see hidden.Hidden, of
    which a third value then is a tuple.
    """

    config: ImageTowerConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> tuple:
        c = self.config
        normal = nn.initializers.normal
        patch_init = nn.initializers.lecun_normal() if c.init == "big_vision" else normal((3 * c.patch_size**2) ** -0.5)
        x = PatchEmbed(c.patch_size, c.width, c.patch_bias, patch_init, self.dtype, name="patch_embed")(image)
        prefix = int(c.pool == "cls" or c.class_token)
        if prefix:
            cls = self.param("cls_token", normal(c.width**-0.5), (c.width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], axis=1)
        if c.position != "none":
            x = x + position_embedding(self, image.shape, x.shape[1]).astype(x.dtype)
        rotation = None
        if c.rope:
            rows, columns = image.shape[1] // c.patch_size, image.shape[2] // c.patch_size
            head = c.width // c.num_heads
            rotation = rotary_2d(rows, columns, head, c.rope_theta, grid=c.rope_grid, prefix=prefix)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        if c.patch_dropout > 0 and train:
            x, rotation = drop_patches(x, rotation, c.patch_dropout, self.make_rng("dropout"), prefix)
        norm = functools.partial(NORMS[c.norm], c.norm_eps)
        if c.pre_norm:
            x = norm(name="ln_pre")(x)
        x, states = transformer(
            x,
            c,
            causal=False,
            dtype=self.dtype,
            train=train,
            activations=self.activations,
            rotation=rotation,
            hidden_layers=hidden_layers,
        )
        ln_post = norm(name="ln_post")
        by_attention = c.pool in ("attentional", "parallel", "cascade")
        hidden = tuple(Hidden(state, None if by_attention else ln_post(state)) for state in states)
        if by_attention:
            x, tokens = pool_by_attention(self, x, ln_post)
        else:
            tokens = x if c.norm_after_pool else ln_post(x)
            if c.pool == "cls":
                x = ln_post(x[:, 0])  # not tokens[:, 0]: where nobody asks for the tokens, they are not normalised
            elif c.pool == "map":
                x = MapHead(c.num_heads, c.mlp_dim, c.activation, c.norm_eps, self.dtype, name="map_head")(tokens)
            else:
                x = tokens[:, prefix:].mean(axis=1)
                x = ln_post(x) if c.norm_after_pool else x
        if c.projection:
            init = normal(c.width**-0.5)
            x = Linear(self.embed_dim, init, c.projection_bias, dtype=self.dtype, name="projection")(x)
        return (x, tokens, hidden) if hidden_layers else (x, tokens)


def position_embedding(tower: nn.Module, image_shape: tuple[int, ...], length: int) -> jax.Array:
    """[length, width] float32; learned, or fixed sin and cos with zeros for the class token."""
    c = tower.config
    if c.position == "learned":
        return tower.param("position_embedding", nn.initializers.normal(c.width**-0.5), (length, c.width))
    rows, columns = image_shape[1] // c.patch_size, image_shape[2] // c.patch_size
    grid = sincos_2d(rows, columns, c.width)
    return jnp.pad(grid, ((length - len(grid), 0), (0, 0)))


def drop_patches(
    x: jax.Array, rotation: Rotation | None, rate: float, key: jax.Array, prefix: int
) -> tuple[jax.Array, Rotation | None]:
    """A share of 1 - rate of every image's patches, at least one, drawn without replacement; the prefix stays.

    x [B, L, width] -> [B, K, width], rotation [L, d] -> [B, K, d] of the same patches. FLIP (2212.00794).
    """
    batch, length, _ = x.shape
    count = max(1, int((length - prefix) * (1 - rate)))
    # A sort, and not top_k, which compilers do not cut along the batch.
    order = jnp.argsort(jax.random.uniform(key, (batch, length - prefix)), axis=1)[:, :count]
    kept = jnp.pad(order + prefix, ((0, 0), (prefix, 0)))
    if rotation is not None:
        rotation = tuple(jnp.asarray(a)[kept] for a in rotation)
    return jnp.take_along_axis(x, kept[:, :, None], axis=1), rotation
