"""One stack of pre-norm transformer blocks for every ViT and text tower."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clipjax.config import ImageTowerConfig, TextTowerConfig
from clipjax.models.layers import LayerNorm, Mlp, SelfAttention, constrain

PRODUCTS = ("qkv", "attended", "attention_out", "mlp_up", "conv")  # 9 widths a token; with mlp_dim = 4 widths
# What the backward pass of a block may keep; everything else it computes again. "attention" is not among them: there
# only attention() is computed again, see SelfAttention.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names(*PRODUCTS),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(PRODUCTS),
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def transformer(
    x: jax.Array,
    config: ImageTowerConfig | TextTowerConfig,
    *,
    causal: bool,
    dtype: jnp.dtype,
    train: bool,
    activations: jax.sharding.Sharding | None,
) -> jax.Array:
    """config.depth blocks on x [batch, length, width]; called from a tower's compact method, whose parameters they are.

    scan_layers=True compiles one block and loops over parameters stacked under "blocks"; False unrolls
    into "block_0", "block_1", ...: slower to compile, faster to run on CPU.
    """
    block = rematerialised(Block, config.remat, prevent_cse=not config.scan_layers, static_argnums=(3,))
    drop_path = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
    if not config.scan_layers:
        for i, rate in enumerate(drop_path):
            x, _ = block(config, causal, dtype, activations, name=f"block_{i}")(x, rate, train)
        return x
    blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=config.depth,
    )
    return blocks(config, causal, dtype, activations, name="blocks")(x, jnp.asarray(drop_path, jnp.float32), train)[0]


def rematerialised(block: type[nn.Module], remat: str, **options: Any) -> type[nn.Module]:
    """The module with config.remat's policy around its call."""
    return nn.remat(block, policy=REMAT_POLICIES[remat], **options) if remat in REMAT_POLICIES else block


class Block(nn.Module):
    """x + attention(LN(x)), then + MLP(LN(x)). Returns (x, None): the form nn.scan needs."""

    config: ImageTowerConfig | TextTowerConfig
    causal: bool
    dtype: jnp.dtype
    activations: jax.sharding.Sharding | None = None

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: float | jax.Array, train: bool) -> tuple[jax.Array, None]:
        config = self.config
        init = block_initializers(config)
        x = constrain(x, self.activations)
        attention = SelfAttention(
            config.num_heads,
            self.causal,
            init["qkv"],
            init["out"],
            init["bias"],
            self.dtype,
            remat=config.remat == "attention",
            name="attention",
        )
        mlp = Mlp(config.mlp_dim, config.activation, init["up"], init["down"], init["bias"], self.dtype, name="mlp")

        def residual(branch: jax.Array) -> jax.Array:
            branch = nn.Dropout(config.dropout, deterministic=not train)(branch)
            if config.drop_path > 0 and train:
                keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_path, (branch.shape[0], 1, 1))
                branch = jnp.where(keep, branch / (1 - drop_path), 0).astype(branch.dtype)
            return branch

        x = x + checkpoint_name(residual(attention(LayerNorm(config.norm_eps, name="ln_1")(x))), "attention_out")
        x = x + residual(mlp(LayerNorm(config.norm_eps, name="ln_2")(x)))
        return constrain(x, self.activations), None


def block_initializers(config: ImageTowerConfig | TextTowerConfig) -> dict[str, Any]:
    """Initialisers of a block's matrices and biases, by config.init.

    "clip": normal, std width^-0.5, outputs scaled by (2 depth)^-0.5 (openai/CLIP initialize_parameters).
    "big_vision": Xavier uniform, MLP biases normal(1e-6) (big_vision models/vit.py); q, k, v one by one.
    """
    if config.init == "big_vision":
        xavier = nn.initializers.xavier_uniform()

        def qkv(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
            parts = [xavier(k, (shape[0], shape[2])) for k in jax.random.split(key, shape[1])]
            return jnp.stack(parts, axis=1)

        return {"qkv": qkv, "out": xavier, "up": xavier, "down": xavier, "bias": nn.initializers.normal(1e-6)}
    normal, width = nn.initializers.normal, config.width
    out = normal(width**-0.5 * (2 * config.depth) ** -0.5)
    return {
        "qkv": normal(width**-0.5),
        "out": out,
        "up": normal((2 * width) ** -0.5),
        "down": out,
        "bias": nn.initializers.zeros,
    }


def stack_layers(tower: dict[str, Any]) -> dict[str, Any]:
    """A tower's parameters with block_0, block_1, ... stacked into "blocks" (scan_layers=True's layout)."""
    depth = sum(name.startswith("block_") for name in tower)
    blocks = [tower[f"block_{i}"] for i in range(depth)]
    rest = {name: value for name, value in tower.items() if not name.startswith("block_")}
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_layers(tower: dict[str, Any]) -> dict[str, Any]:
    """The reverse of stack_layers."""
    rest = {name: value for name, value in tower.items() if name != "blocks"}
    depth = jax.tree.leaves(tower["blocks"])[0].shape[0]
    blocks = {f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tower["blocks"]) for i in range(depth)}
    return rest | blocks
