"""LoRA (Hu et al. 2106.09685): adapters beside frozen matrices, W + alpha / rank * A B.

params["lora"] holds them, so checkpoints, averages and restarts need to know nothing of them:

    {"scale": (),                                        alpha / rank, which does not train
     "image": {"blocks": {"attention": {"query": {"a": [layers, in, rank], "b": [layers, rank, out]}}}}, ...}

The towers know nothing of them: the step, evaluation and export form W + scale * A B and run the towers on the sum,
which is exact for every tower, scan, remat and kernel. What it costs, for W [in, out] and the n rows of a step:

    full training              forward, dx and dW: 3 products of n * in * out
    adapters added to W        the same 3, since dA and dB are made from dW; A B, dA and dB are rank / n of one
    adapters beside x W        2 such products, and some of n * rank * (in + out)

So only the adapted matrices' dW is dearer than it must be, at most a third of their FLOPs: with the default query and
value, a quarter of a block's dW (query, key and value are one array). Matrices without adapters have no dW at all. A
step holds the sum and dW of the adapted matrices for a while, but no moments of W. Checkpoints hold W, so that a run
needs no other.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clipjax.config import ExperimentConfig, LoraConfig, nearest, require
from clipjax.optim.layers import ADAPTERS, TOWERS, multiplier
from clipjax.training.trainable import adapted, joined

Tree = dict[str, Any]

# What config.lora.matrices may name: (part of a block, its matrix, index in a matrix that holds several, or None).
MATRICES: dict[str, tuple[str, str, int | None]] = {
    "query": ("attention", "qkv", 0),
    "key": ("attention", "qkv", 1),
    "value": ("attention", "qkv", 2),
    "out": ("attention", "out", None),
    "up": ("mlp", "up", None),
    "gate": ("mlp", "gate", None),
    "down": ("mlp", "down", None),
}


def with_adapters(config: ExperimentConfig, params: Tree, key: jax.Array) -> Tree:
    """params and fresh adapters, if config.lora has them; traceable.

    A starts as in peft, uniform within 1 / sqrt(in) (He initialisation with a = sqrt(5)), and B at zero: the first step
    computes what params compute.
    """
    if not config.lora.rank:
        return params
    rank, adapters = config.lora.rank, {}

    def pair(kernel: jax.Array, stacked: bool, key: jax.Array) -> Tree:
        layers, inputs, outputs = kernel.shape[:stacked], kernel.shape[stacked], kernel.shape[-1]
        bound = inputs**-0.5
        a = jax.random.uniform(key, (*layers, inputs, rank), minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros((*layers, rank, outputs))}

    for tower in filter(lambda tower: adapted(config, tower), TOWERS):
        adapters[tower] = {}
        for name in sorted(name for name in params[tower] if name == "blocks" or name.startswith("block_")):
            block = adapters[tower][name] = {}
            for matrix in config.lora.matrices:
                part, whole, _ = MATRICES[matrix]
                if whole in params[tower][name][part]:
                    key, own = jax.random.split(key)
                    kernel = params[tower][name][part][whole]["kernel"]
                    block.setdefault(part, {})[matrix] = pair(kernel, name == "blocks", own)
    scale = jnp.float32(config.lora.alpha / rank)
    return {**params, ADAPTERS: {"scale": scale, **adapters}}


def merged(params: Tree) -> Tree:
    """The towers' parameters with the adapters added, and without "lora"; params that have none as they are.

    Traceable. Arrays stay in their layout on the mesh; all processes call it together. Shapes (jax.ShapeDtypeStruct)
    keep their shardings.
    """
    if ADAPTERS not in params:
        return params
    base = {name: tree for name, tree in params.items() if name != ADAPTERS}
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return base
    add = adapted_kernels
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) and isinstance(leaves[0], jax.Array):
        kernels = jax.eval_shape(add, params)
        # Outside a step, the result must lie where the parameters lie.
        add = jax.jit(add, out_shardings=jax.tree.map(lambda _, leaf: leaf.sharding, kernels, subtree(base, kernels)))
    return joined(base, add(params))


def subtree(tree: Tree, like: Tree) -> Tree:
    """The leaves of a tree of nested dicts that `like` has too."""
    return {n: subtree(tree[n], value) if isinstance(value, dict) else tree[n] for n, value in like.items()}


def adapted_kernels(params: Tree) -> Tree:
    """The kernels that have adapters, with those added: a tree of nested dicts of these kernels alone."""
    scale, kernels = params[ADAPTERS]["scale"], {}
    for tower in filter(params[ADAPTERS].__contains__, TOWERS):
        for name, block in params[ADAPTERS][tower].items():
            for part, matrices in block.items():
                for matrix, pair in matrices.items():
                    _, whole, index = MATRICES[matrix]
                    own = kernels.setdefault(tower, {}).setdefault(name, {}).setdefault(part, {}).setdefault(whole, {})
                    kernel = jnp.asarray(own.get("kernel", params[tower][name][part][whole]["kernel"]))
                    # In float32, as parameters are: a TPU's default precision would round A and B to bfloat16.
                    delta = scale * jnp.matmul(pair["a"], pair["b"], precision=lax.Precision.HIGHEST)
                    own["kernel"] = kernel + delta if index is None else kernel.at[..., index, :].add(delta)
    return kernels


def check_lora(config: ExperimentConfig) -> None:
    """Refuses adapters that could not be made, or would have no effect. Raises ConfigError."""
    lora, where, default = config.lora, "config.lora", LoraConfig()
    if not lora.rank:
        for name, value in vars(lora).items():
            require(
                value == getattr(default, name),
                f"{where}.{name}={value!r} has no effect with {where}.rank=0, which is without adapters. Set a rank, "
                f"such as 8, or leave {name} at {getattr(default, name)!r}.",
            )
        return
    for name in lora.matrices:
        require(name in MATRICES, f"{where}.matrices has '{name}', which is no matrix.{nearest(name, MATRICES)}")
    require(
        len(set(lora.matrices)) == len(lora.matrices) > 0,
        f"{where}.matrices={lora.matrices} must name at least one of {', '.join(MATRICES)}, each once.",
    )
    require(
        lora.image or lora.text,
        f"{where}.image and text are both False: {where}.rank={lora.rank} adapts no tower. Adapt one, or set rank=0.",
    )
    for name in filter(lambda name: getattr(lora, name), TOWERS):
        _check_tower(config, name)
    having = {matrix for name in TOWERS if getattr(lora, name) for matrix in matrices_of(getattr(config.model, name))}
    for matrix in lora.matrices:
        require(
            matrix in having,
            f"{where}.matrices has '{matrix}', which no adapted tower has: only blocks with mlp='swiglu' have a gate.",
        )


def _check_tower(config: ExperimentConfig, name: str) -> None:
    lora, tower, optimizer = config.lora, getattr(config.model, name), config.optimizer
    cure, unlocked = f"Set config.lora.{name}=False", getattr(optimizer, f"{name}_unlocked_blocks")
    require(
        set(lora.matrices) & set(matrices_of(tower)),
        f"config.lora.{name}=True, but tower '{tower.name}' has none of the matrices {', '.join(lora.matrices)} in "
        f"blocks. {cure}, or adapt others.",
    )
    require(
        lora.rank <= tower.width,
        f"config.lora.rank={lora.rank} is more than config.model.{name}.width={tower.width}: such adapters would be "
        "larger than the matrices. Use a smaller rank, such as 8.",
    )
    require(
        multiplier(optimizer, name) > 0,
        f"config.lora.{name}=True with config.optimizer.{name}_lr_multiplier=0: the adapters would not train. {cure} "
        "to freeze the tower, or set the multiplier to 1.0.",
    )
    require(
        unlocked == -1,
        f"config.optimizer.{name}_unlocked_blocks={unlocked} with config.lora.{name}=True, which freezes all blocks "
        f"and adapts each of them. Leave it at -1, or {cure[0].lower() + cure[1:]}.",
    )


def matrices_of(tower: Any) -> tuple[str, ...]:
    """Those of MATRICES that the blocks of a tower have; tower: its section of config.model."""
    if not hasattr(tower, "depth"):
        return ()
    gated = getattr(tower, "mlp", "plain") == "swiglu"
    return tuple(name for name in MATRICES if name != "gate" or gated)
