"""One stack of pre-norm transformer blocks for every ViT and text tower."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clipjax.config import BlockConfig, require
from clipjax.models.attention import CrossAttention, Row, SelfAttention, padded_for, row_of, self_attention_by
from clipjax.models.layers import NORMS, Mlp, constrain
from clipjax.models.rotary import Rotation

# 9 * width numbers per token if mlp_dim is 4 * width; the sums are cuDNN's softmax's, a number per token and head.
PRODUCTS = ("qkv", "attended", "attention_sums", "attention_out", "mlp_up", "conv")
# What a block keeps for the backward pass, which computes everything else again. remat="attention" has no policy: it
# computes only attention() again, see SelfAttention.
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
    config: Any,
    *,
    causal: bool,
    dtype: jnp.dtype,
    train: bool,
    activations: jax.sharding.Sharding | None,
    rotation: Rotation | None = None,
    mask: jax.Array | None = None,
    hidden_layers: tuple[int, ...] = (),
    frozen_blocks: int = 0,
    row: Row | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """config.depth blocks on x [batch, length, width]; called in a tower's compact method, which owns the parameters.

    config: BlockConfig, and scan_layers: True compiles one block and loops over parameters stacked under "blocks";
    False unrolls into "block_0", "block_1", ...: slower to compile, faster to run on CPU.
    rotation, mask: every layer's, see SelfAttention. frozen_blocks: of scanned layers, see in_parts.
    row: the one row of each example that is read, see Block; the result is then [batch, 1, width].
    Returns (x, the states of hidden_layers), see layer_indices.
    """
    keys = x.shape[1]
    row = row + keys if isinstance(row, int) and row < 0 else row
    # One row of padding in all layers costs less than adding and removing it in every layer.
    x, rotation = padded_for(self_attention_by(x, config.num_heads, dtype, config.attention, activations), x, rotation)
    length = x.shape[1]
    block = rematerialised(Block, config.remat, prevent_cse=not config.scan_layers, static_argnums=(3, 8))
    make = functools.partial(block, config, causal, dtype, length, activations, keys=keys)
    x, unflat = x.reshape(-1, config.width), lambda y: y.reshape(-1, length, config.width)[:, :keys]
    finish = unflat if row is None else lambda y: y[:, None]
    which = (row, None) if not isinstance(row, int) else (None, row)  # of the last block: traced, or known
    drop_path = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
    wanted = layer_indices(hidden_layers, config.depth)
    if not config.scan_layers:
        states = [x]
        for i, rate in enumerate(drop_path):
            last = which if i == config.depth - 1 else (None, None)
            x, _ = make(name=f"block_{i}")(x, rate, train, rotation, mask, None, *last)
            states.append(x)
        return finish(x), tuple(unflat(states[i]) for i in wanted)

    def layer(block: nn.Module, carry: tuple, rate: jax.Array, i: jax.Array) -> tuple[tuple, None]:
        x, states = carry
        # Only the states asked for are carried along; stacking would keep those of all layers.
        states = tuple(jnp.where(i == k, x, state) for k, state in zip(wanted, states, strict=True))
        return (block(x, rate, train, rotation, mask, None, None, None)[0], states), None

    def run(blocks: nn.Module, carry: tuple, start: int, stop: int) -> tuple:
        scan = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=stop - start,
        )
        rates = jnp.asarray(drop_path[start:stop], jnp.float32)
        return scan(blocks, carry, rates, jnp.arange(start, stop))[0]

    blocks, looped = make(name="blocks"), config.depth - (row is not None)
    x, states = in_parts(run, blocks, (x, (x,) * len(wanted)), config.depth, frozen_blocks, looped)
    if row is not None:

        def last(block: nn.Module, x: jax.Array) -> jax.Array:
            return block(x, drop_path[-1], train, rotation, mask, None, *which)[0]

        x = nn.map_variables(last, "params", functools.partial(jax.tree.map, lambda stack: stack[-1]))(blocks, x)
    return finish(x), tuple(unflat(x if i == config.depth else s) for i, s in zip(wanted, states, strict=True))


def in_parts(run: Callable, blocks: nn.Module, carry: Any, depth: int, frozen: int, looped: int | None = None) -> Any:
    """run(blocks, carry, start, stop) over scanned blocks start to stop - 1; all at once, or the first `frozen` apart.

    The parameters of `blocks` are those of all `depth` layers. looped: how many of them run; None: all. The backward
    pass of one loop goes through all of its blocks, however few of them train; after a loop over the trained ones it
    ends.
    """
    looped = depth if looped is None else looped
    frozen = min(frozen, looped)
    if not frozen and looped == depth:
        return run(blocks, carry, 0, depth)
    for start, stop in [(0, frozen), (frozen, looped)] if frozen else [(0, looped)]:
        carry = jax.lax.stop_gradient(carry) if frozen else carry
        if start < stop:
            rows = functools.partial(jax.tree.map, lambda stack, s=start, t=stop: stack[s:t])
            carry = nn.map_variables(functools.partial(run, start=start, stop=stop), "params", rows)(blocks, carry)
    return carry


def rematerialised(block: type[nn.Module], remat: str, **options: Any) -> type[nn.Module]:
    """The module with the policy of config.remat around its call; options: those of nn.remat."""
    return nn.remat(block, policy=REMAT_POLICIES[remat], **options) if remat in REMAT_POLICIES else block


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), varied by config. Returns (x, None): the form nn.scan needs.

    x: [batch * length, width]. Only attention needs the examples apart. A TPU would lay out [batch, length, width] in
    another way for examples of 196 rows, and every product outside attention would then cost a copy.
    cross: attention is to context [batch, any length, any width], which has a norm of its own, not to x.
    keys: number of leading rows of an example that are not padding; 0: all.

    rows [batch] int32 or row: the one row of each example that anyone reads. Of the others nothing but a norm is
    computed, and with rotary positions their keys and values; the result is [batch, width].
    """

    config: BlockConfig
    causal: bool
    dtype: jnp.dtype
    length: int
    activations: jax.sharding.Sharding | None = None
    cross: bool = False
    keys: int = 0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        drop_path: float | jax.Array,
        train: bool,
        rotation: Rotation | None = None,
        mask: jax.Array | None = None,
        context: jax.Array | None = None,
        rows: jax.Array | None = None,
        row: int | None = None,
    ) -> tuple[jax.Array, None]:
        config = self.config
        one = rows if row is None else row
        init = block_initializers(config)
        norm = functools.partial(NORMS[config.norm], config.norm_eps)
        x = constrain(x, self.activations)
        examples = lambda y: y.reshape(-1, self.length, config.width)  # noqa: E731
        if self.cross:
            matrix = nn.initializers.normal(config.width**-0.5)
            runtime = dict(kind=config.attention, activations=self.activations)
            attention = CrossAttention(config.num_heads, matrix, init["out"], self.dtype, **runtime, name="attention")
            attend = lambda y: attention(examples(y), norm(name="ln_context")(context), mask).reshape(y.shape)  # noqa: E731
        else:
            attention = SelfAttention(
                config.num_heads,
                self.causal,
                init["qkv"],
                init["out"],
                init["bias"],
                self.dtype,
                remat=config.remat == "attention",
                chunk=config.attention_chunk,
                kind=config.attention,
                activations=self.activations,
                qkv_bias=config.qkv_bias,
                norm=norm if config.attention_norm else None,
                keys=self.keys,
                name="attention",
            )
            attend = lambda y: attention(examples(y), rotation, mask, one).reshape(-1, config.width)  # noqa: E731
        mlp = Mlp(
            config.mlp_dim,
            config.activation,
            init["up"],
            init["down"],
            init["bias"],
            self.dtype,
            gate={"swiglu": "silu", "geglu": config.activation}.get(config.mlp, ""),
            norm=norm if config.mlp_norm else None,
            first_norm=norm if config.mlp_first_norm else None,
            name="mlp",
        )

        def branch(which: int, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
            ln = norm(name=f"ln_{which}")
            y = ln(f(x)) if config.post_norm else f(ln(x))
            if config.layer_scale:
                scale = self.param(f"ls_{which}", nn.initializers.constant(config.layer_scale), (x.shape[-1],))
                y = y * scale.astype(y.dtype)
            y = nn.Dropout(config.dropout, deterministic=not train)(y)
            if config.drop_path > 0 and train:
                length = self.length if one is None else 1
                keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_path, (y.shape[0] // length, 1))
                y = jnp.where(jnp.repeat(keep, length, axis=0), y / (1 - drop_path), 0).astype(y.dtype)
            return y

        kept = x if one is None else row_of(examples(x), one, self.activations).reshape(-1, config.width)
        x = kept + checkpoint_name(branch(1, attend, x), "attention_out")
        x = x + branch(2, mlp, x)
        return constrain(x, self.activations), None


def block_initializers(config: BlockConfig) -> dict[str, Any]:
    """Initialisers of a block's matrices and biases: "qkv", "out", "up", "down", "bias".

    config.init "clip": normal, std width^-0.5, outputs scaled by (2 depth)^-0.5 (openai/CLIP initialize_parameters).
    "big_vision": Xavier uniform for q, k and v one by one, MLP biases normal(1e-6) (big_vision models/vit.py).
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


def layer_indices(hidden_layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """hidden_layers without negative numbers. They count like transformers' hidden_states.

    0 is what enters the first block, i what leaves block i, -1 what leaves the last. Raises ConfigError for a layer
    that does not exist.
    """
    for layer in hidden_layers:
        require(
            -depth - 1 <= layer <= depth,
            f"hidden_layers has {layer}, but the tower has {depth} blocks: use {-depth - 1} to {depth}, where 0 "
            "is what enters the first block and -1 what leaves the last.",
        )
    return tuple(layer % (depth + 1) for layer in hidden_layers)


def check_heads(width: int, num_heads: int, where: str) -> None:
    """Raises ConfigError unless the heads have a whole number of channels."""
    require(width % num_heads == 0, f"{where}.width={width} is not a multiple of num_heads={num_heads}.")


def check_rope(config: Any, where: str, *, axes: int) -> None:
    """Raises ConfigError for heads that rotary positions along `axes` axes cannot turn."""
    require(
        not config.rope or config.width // config.num_heads % (2 * axes) == 0,
        f"{where}.rope=True needs heads of a multiple of {2 * axes} channels, but width={config.width} over "
        f"num_heads={config.num_heads} gives {config.width / config.num_heads:g}.",
    )
