"""Vision transformers: CLIP's (class token, pre-norm, projection) and SigLIP's (MAP head) are settings of one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipjax.config import BlockConfig, ImageTowerConfig, require
from clipjax.config.fields import LAYOUT, experiment, meaning, runtime, weights
from clipjax.config.ranges import BASE, BIAS, PIXELS, PIXELS_OR_ZERO, POSITIONS, RATE, WIDTH, WIDTH_OR_ZERO
from clipjax.models import tower_flops
from clipjax.models.layers import NORMS, Linear, PatchEmbed, constrain
from clipjax.models.pooling import AttentionalPooler, MapHead
from clipjax.models.position import sincos_2d
from clipjax.models.rotary import Rotation, rotary_2d
from clipjax.models.towers.tower import IMAGE, Hidden, Tower, TowerOutput, check_projection, square_image
from clipjax.models.transformer import check_heads, check_rope, transformer

BY_ATTENTION = ("attentional", "parallel", "cascade")  # pools whose learned queries become the tokens


@dataclass(frozen=True)
class PatchTowerConfig(BlockConfig, ImageTowerConfig):
    """What the transformers over patches share: `vit` and `naflex`."""

    patch_size: int = weights(32, within=PIXELS)  # pixels
    width: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    pre_norm: bool = weights(True)  # CLIP's LayerNorm between the position embedding and the first block
    patch_bias: bool = weights(False)  # a bias after the patch embedding
    projection: bool = weights(True)  # linear map to embed_dim; False: width == embed_dim
    projection_bias: bool = weights(False)  # a bias in that map
    map_heads: int = meaning(0, within=WIDTH_OR_ZERO)  # of pool "map"; 0: num_heads
    map_mlp_dim: int = weights(0, within=WIDTH_OR_ZERO)  # of pool "map"; 0: mlp_dim
    scan_layers: bool = runtime(True, fixed=LAYOUT)  # one loop over stacked blocks: compiles faster


@dataclass(frozen=True)
class ViTConfig(PatchTowerConfig):
    name: str = "vit"
    pool: Literal["cls", "gap", "map", "attentional", "parallel", "cascade"] = meaning("cls")  # docs/models.md
    # pools attentional, parallel, cascade: tokens that the pooler makes (CoCa)
    pooler_queries: int = weights(256, within=POSITIONS)
    pooler_heads: int = meaning(8, within=WIDTH)  # of the pooler's attention
    class_token: bool = weights(False)  # one that is not pooled, if pool is not "cls" (CLIPA, CoCa)
    norm_after_pool: bool = meaning(False)  # ln_post on the result of pool "cls" or "gap", not on all tokens (CLIPA)
    position: Literal["learned", "sincos", "none"] = meaning("learned")
    class_position: bool = weights(True)  # position "learned": the class token has one too (MobileCLIP: not)
    rope: bool = meaning(False)  # rotary positions in two dimensions (EVA-02)
    rope_theta: float = meaning(10_000.0, within=BASE)  # base of the rotary frequencies
    # rows and columns are scaled to this many, whatever the resolution; 0: not scaled
    rope_grid: int = meaning(16, within=PIXELS_OR_ZERO)
    rope_axes: Literal["yx", "xy"] = meaning("yx")  # whose angles come first: rows' or columns' (PE-Core)
    rope_offset: float = meaning(0.0, within=BIAS)  # the number of the first row and column (PE-Core: 1)
    # share of the patches left out, training only (FLIP, 2212.00794)
    patch_dropout: float = experiment(0.0, within=RATE)


class VisionTransformer(nn.Module):
    """image [B, H, W, 3], normalised -> TowerOutput, tokens [B, L, width].

    The tokens are the last block's after ln_post, the class token first if there is one; with norm_after_pool they are
    not normalised. The attentional poolers make their own, [B, N, embed_dim]. give_tokens: see Tower.
    """

    config: ViTConfig
    embed_dim: int
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None
    frozen_blocks: int = 0
    give_tokens: bool = True

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden_layers: tuple[int, ...] = ()) -> TowerOutput:
        c = self.config
        normal = nn.initializers.normal
        x, prefix = self.patches(image, train), class_tokens(c)
        if prefix:
            cls = self.param("cls_token", normal(c.width**-0.5), (c.width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], axis=1)
        rows, columns = image.shape[1] // c.patch_size, image.shape[2] // c.patch_size
        bare = prefix * (c.position == "sincos" or not c.class_position)  # tokens in front that have no position
        if c.position == "learned":
            table = self.param("position_embedding", normal(c.width**-0.5), (x.shape[1] - bare, c.width))
            x = x + jnp.pad(table, ((bare, 0), (0, 0))).astype(x.dtype)
        elif c.position == "sincos":
            x = x + jnp.pad(sincos_2d(rows, columns, c.width), ((bare, 0), (0, 0))).astype(x.dtype)
        rotation = None
        if c.rope:
            head, options = c.width // c.num_heads, dict(axes=c.rope_axes, offset=c.rope_offset)
            rotation = rotary_2d(rows, columns, head, c.rope_theta, grid=c.rope_grid, prefix=prefix, **options)
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        if c.patch_dropout > 0 and train:
            x, rotation = drop_patches(x, rotation, c.patch_dropout, self.make_rng("dropout"), prefix)
        norm = functools.partial(NORMS[c.norm], c.norm_eps)
        if c.pre_norm:
            x = norm(name="ln_pre")(x)
        # Of the last block, nothing but the class token is read.
        alone = c.pool == "cls" and not (self.give_tokens or hidden_layers or self.is_initializing())
        row = 0 if alone else None
        x, states = transformer(
            x,
            c,
            causal=False,
            dtype=self.dtype,
            train=train,
            activations=self.activations,
            rotation=rotation,
            hidden_layers=hidden_layers,
            frozen_blocks=self.frozen_blocks,
            row=row,
        )
        ln_post = norm(name="ln_post")
        by_attention = c.pool in BY_ATTENTION
        hidden = tuple(Hidden(state, None if by_attention else ln_post(state)) for state in states)
        pooled, tokens = self.pool_by_attention(x, ln_post) if by_attention else self.pool(x, ln_post)
        tokens = None if alone else tokens
        if c.projection:
            init = normal(c.width**-0.5)
            pooled = Linear(self.embed_dim, init, c.projection_bias, dtype=self.dtype, name="projection")(pooled)
        return TowerOutput(pooled, tokens, hidden)

    def patches(self, image: jax.Array, train: bool) -> jax.Array:
        """image [B, H, W, 3] -> [B, H W / patch_size^2, width], row by row."""
        c = self.config
        return PatchEmbed(c.patch_size, c.width, c.patch_bias, patch_init(c), self.dtype, name="patch_embed")(image)

    def pool(self, x: jax.Array, ln_post: nn.Module) -> tuple[jax.Array, jax.Array]:
        """x [B, L, width] -> (pooled [B, width], tokens [B, L, width]), for pools "cls", "gap" and "map"."""
        c = self.config
        tokens = x if c.norm_after_pool else ln_post(x)
        if c.pool == "cls":
            # Not tokens[:, 0]: if nobody uses the tokens, the compiler then leaves out normalising them.
            return ln_post(x[:, 0]), tokens
        if c.pool == "map":
            return map_head(c, self.dtype, self.activations)(tokens), tokens
        mean = tokens[:, class_tokens(c) :].mean(axis=1)
        return ln_post(mean) if c.norm_after_pool else mean, tokens

    def pool_by_attention(self, x: jax.Array, ln_post: nn.Module) -> tuple[jax.Array, jax.Array]:
        """x [B, L, width] -> (pooled [B, embed_dim], tokens [B, N, embed_dim]), for the attentional pools.

        "attentional": one pooler, whose first token is the image's and whose others are the captioner's (the published
        CoCa weights). The CoCa paper has a pooler of one query beside the captioner's: in "parallel" both attend to
        the tower's tokens, in "cascade" the second attends to the captioner's. Source: open_clip transformer.py.
        """
        c, x = self.config, constrain(x, self.activations)

        def pooler(queries: int, name: str) -> AttentionalPooler:
            options = c.norm_eps, self.dtype, c.attention, self.activations
            return AttentionalPooler(self.embed_dim, queries, c.pooler_heads, *options, name=name)

        if c.pool == "attentional":
            tokens = ln_post(pooler(c.pooler_queries, "pooler")(x))
            return tokens[:, 0], tokens[:, 1:]
        x = ln_post(x)
        tokens = pooler(c.pooler_queries, "pooler")(x)
        pooled = pooler(1, "contrastive_pooler")(x if c.pool == "parallel" else tokens)
        return pooled[:, 0], tokens


def class_tokens(config: ViTConfig) -> int:
    """Number of tokens in front of the patches: 0 or 1."""
    return int(config.pool == "cls" or config.class_token)


def map_head(config: PatchTowerConfig, dtype: jnp.dtype, activations: jax.sharding.Sharding | None) -> MapHead:
    """The module of pool "map"."""
    heads, mlp_dim = config.map_heads or config.num_heads, config.map_mlp_dim or config.mlp_dim
    return MapHead(heads, mlp_dim, config.activation, config.norm_eps, dtype, activations, name="map_head")


def patch_init(config: PatchTowerConfig) -> nn.initializers.Initializer:
    """The initialiser of the patch embedding's kernel."""
    if config.init == "big_vision":
        return nn.initializers.lecun_normal()
    return nn.initializers.normal((3 * config.patch_size**2) ** -0.5)


def drop_patches(
    x: jax.Array, rotation: Rotation | None, rate: float, key: jax.Array, prefix: int
) -> tuple[jax.Array, Rotation | None]:
    """Keeps a share of 1 - rate of every image's patches, at least one, drawn without replacement, and the prefix.

    x [B, L, width] -> [B, K, width], rotation [L, d] -> [B, K, d] of the same patches. FLIP (2212.00794).
    """
    batch, length, _ = x.shape
    count = _kept(length - prefix, rate)
    # A sort, not top_k: compilers do not partition top_k along the batch.
    order = jnp.argsort(jax.random.uniform(key, (batch, length - prefix)), axis=1)[:, :count]
    kept = jnp.pad(order + prefix, ((0, 0), (prefix, 0)))
    if rotation is not None:
        rotation = tuple(jnp.asarray(a)[kept] for a in rotation)
    return jnp.take_along_axis(x, kept[:, :, None], axis=1), rotation


def _kept(patches: int, rate: float) -> int:
    return max(1, int(patches * (1 - rate)))


def check_patches(config: PatchTowerConfig) -> None:
    """Raises ConfigError for options that a transformer over patches does not have."""
    check_heads(config.width, config.num_heads, IMAGE)
    require(
        config.width % (config.map_heads or 1) == 0,
        f"{IMAGE}.width={config.width} is not a multiple of map_heads={config.map_heads}.",
    )
    require(
        config.image_size % config.patch_size == 0 or config.image_size > config.patch_size,
        f"{IMAGE}.patch_size={config.patch_size} is larger than image_size={config.image_size}.",
    )


def check(config: ViTConfig, embed_dim: int) -> None:
    """Raises ConfigError for options that do not fit each other or embed_dim."""
    c, by_attention = config, config.pool in BY_ATTENTION
    check_patches(c)
    # The result of an attentional pool is as wide as the embedding.
    check_projection(c.projection or by_attention, "projection=True", c.width, embed_dim, IMAGE)
    check_rope(c, IMAGE, axes=2)
    require(
        c.position != "sincos" or (c.width % 4 == 0 and c.width > 4),
        f"{IMAGE}.position='sincos' needs a width that is a multiple of 4, at least 8, not {c.width}.",
    )
    require(
        not by_attention or (c.pooler_queries > 1 and embed_dim % c.pooler_heads == 0),
        f"{IMAGE}.pool='{c.pool}' needs pooler_queries of at least 2 (not {c.pooler_queries}), and "
        f"config.model.embed_dim={embed_dim} must be a multiple of pooler_heads={c.pooler_heads}.",
    )
    require(
        c.pool in ("cls", "gap") or not c.norm_after_pool,
        f"{IMAGE}.norm_after_pool=True goes with pool 'cls' or 'gap', not '{c.pool}'.",
    )


def count_flops(config: ViTConfig, embed_dim: int) -> tower_flops.TowerFlops:
    """Patches that training drops count in their embedding only."""
    c, patches = config, (config.image_size // config.patch_size) ** 2
    length = _kept(patches, c.patch_dropout) + class_tokens(c)
    products = tower_flops.block_products(c, length) + patch_products(c, patches)
    if c.pool not in BY_ATTENTION:
        return tower_flops.TowerFlops(
            products + head_products(c, length, embed_dim),
            tower_flops.self_attention(c.depth, c.width, length),
            (length, c.width),
            tower_flops.beside_one_row(c, length, c.rope) if c.pool == "cls" else (0, 0),
        )
    products += 2 * embed_dim * embed_dim if c.projection else 0
    products += tower_flops.cross_attention(c.pooler_queries, embed_dim, length, c.width)
    if c.pool == "parallel":
        products += tower_flops.cross_attention(1, embed_dim, length, c.width)
    if c.pool == "cascade":
        products += tower_flops.cross_attention(1, embed_dim, c.pooler_queries, embed_dim)
    tokens = c.pooler_queries - (c.pool == "attentional")
    return tower_flops.TowerFlops(products, tower_flops.self_attention(c.depth, c.width, length), (tokens, embed_dim))


def patch_products(config: PatchTowerConfig, patches: int) -> int:
    """FLOPs of embedding one image's patches."""
    return 2 * patches * 3 * config.patch_size**2 * config.width


def head_products(config: PatchTowerConfig, length: int, embed_dim: int) -> int:
    """FLOPs of one image's MAP head, if there is one, and projection."""
    c, products = config, 2 * config.width * embed_dim if config.projection else 0
    if c.pool == "map":
        products += tower_flops.one_query(c.map_heads or c.num_heads, c.width, length)
        products += 4 * c.width * (c.map_mlp_dim or c.mlp_dim)
    return products


TOWER = Tower(
    VisionTransformer,
    ViTConfig,
    check,
    square_image,
    count_flops,
    hidden_states=True,
    tokens_optional=True,
    tensor_axis=("num_heads", "mlp_dim"),
    random=("dropout", "drop_path", "patch_dropout"),
    heads=("ln_post", "pooler", "contrastive_pooler", "map_head", "projection"),
)
