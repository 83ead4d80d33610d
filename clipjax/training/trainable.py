"""Which parameters a run trains, and the tree of them alone: what is differentiated, clipped, updated and averaged.

    tree = trained(config, params)      # a frozen tower is not in it, and of scanned blocks only the rows that train
    params = joined(params, tree)       # put back; everything else is the same array

Frozen parameters are constants of the loss, so they get no gradient, optimizer state or weight decay, and keep their
bits. The fields: config.optimizer's multipliers and unlocked blocks, and config.lora.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax.config import ExperimentConfig, require
from clipjax.models import image_tower, text_tower
from clipjax.optim import make_optimizer
from clipjax.optim.layers import ADAPTERS, TOWERS, Heads, distances, multiplier

Tree = dict[str, Any]


def trained(config: ExperimentConfig, params: Tree) -> Tree:
    """The part of params that trains, as nested dicts. A stack of blocks is cut to its last ones if only those train.

    params: {"image", "text", "logit_scale", ...} and "lora" where the run has adapters; arrays or tracers.
    """
    limits = {tower: farthest(config, tower) for tower in TOWERS}

    def cut(tree: Tree, distance: Tree, limit: float) -> Tree:
        result = {}
        for name, value in tree.items():
            if isinstance(value, Mapping):
                if below := cut(value, distance[name], limit):
                    result[name] = below
            elif trains := int((distance[name] <= limit).sum()):
                result[name] = value if trains == distance[name].size else value[-trains:]
        return result

    result, distance = {}, distances(params, heads_of(config))
    for name, value in params.items():
        if name == ADAPTERS:
            result[name] = {tower: adapters for tower, adapters in value.items() if tower in TOWERS}
        elif name in TOWERS:
            result[name] = cut(value, distance[name], limits[name])
        elif multiplier(config.optimizer, name):
            result[name] = value
    return {name: value for name, value in result.items() if not isinstance(value, Mapping) or value}


def joined(params: Tree, part: Tree) -> Tree:
    """params with the leaves of part, a tree of some of its leaves or of their last rows, in place of its own."""
    result = dict(params)
    for name, value in part.items():
        if isinstance(value, Mapping):
            result[name] = joined(params[name], value)
        elif len(value.shape) and value.shape[0] < params[name].shape[0]:
            result[name] = jnp.concatenate([params[name][: -value.shape[0]], value])
        else:
            result[name] = value
    return result


def farthest(config: ExperimentConfig, tower: str) -> float:
    """The largest distance from the tower's end (clipjax/optim/layers.py) at which its own parameters train.

    -1: none of them; 0: what follows the blocks; infinity: all.
    """
    unlocked = getattr(config.optimizer, f"{tower}_unlocked_blocks")
    if multiplier(config.optimizer, tower) == 0:
        return -1
    if adapted(config, tower):
        return 0 if config.lora.heads else -1
    return math.inf if unlocked == -1 else unlocked


def check_trainable(config: ExperimentConfig) -> None:
    """Refuses unlocked blocks and layer-wise rates that a tower cannot have. Raises ConfigError."""
    for name, tower in zip(TOWERS, (config.model.image, config.model.text), strict=True):
        multiplier_of, where = f"config.optimizer.{name}_lr_multiplier", f"config.optimizer.{name}_unlocked_blocks"
        unlocked, depth = getattr(config.optimizer, f"{name}_unlocked_blocks"), getattr(tower, "depth", None)
        require(
            unlocked <= 0 or depth is not None,
            f"{where}={unlocked}: tower '{tower.name}' has no blocks of one kind to count. Use -1 (the whole tower), 0 "
            f"(only what follows its stages), or {multiplier_of}=0 (nothing of it).",
        )
        require(
            depth is None or unlocked <= depth,
            f"{where}={unlocked} is more than the {depth} blocks of config.model.{name}; use -1 for the whole tower.",
        )
        require(
            unlocked != 0 or bool(heads_of(config)[name]),
            f"{where}=0: tower '{tower.name}' has nothing behind its blocks (Tower.heads), so none of it would "
            f"train. Use {multiplier_of}=0 to freeze it.",
        )
        require(
            unlocked == -1 or multiplier(config.optimizer, name) > 0,
            f"{where}={unlocked} has no effect with {multiplier_of}=0, which freezes the whole tower. Set one of them.",
        )
        require(
            config.optimizer.layer_decay == 1 or depth is not None or farthest(config, name) <= 0,
            f"config.optimizer.layer_decay={config.optimizer.layer_decay}: tower '{tower.name}' has no blocks of one "
            f"kind to count. Use 1.0, or train nothing before its end ({multiplier_of}=0, or {where}=0).",
        )


def adapted(config: ExperimentConfig, tower: str) -> bool:
    """Whether the tower's blocks have adapters (config.lora), and stay as they are themselves."""
    return config.lora.rank > 0 and getattr(config.lora, tower)


def frozen_blocks(config: ExperimentConfig) -> tuple[int, int]:
    """DualEncoder's: scanned blocks of each tower that come before others that train. Without scan, none need it."""
    towers = config.model.image, config.model.text
    counts = []
    for name, tower in zip(TOWERS, towers, strict=True):
        depth, limit = getattr(tower, "depth", 0), farthest(config, name)
        counts.append(depth - int(limit) if getattr(tower, "scan_layers", False) and 0 < limit < depth else 0)
    return tuple(counts)


def make_tx(config: ExperimentConfig, params: Tree) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `trained(config, params)`; params: all of them, shapes are enough."""
    part = jax.eval_shape(functools.partial(trained, config), params)
    return make_optimizer(config.optimizer, part, config.total_steps, heads=heads_of(config))


def heads_of(config: ExperimentConfig) -> Heads:
    """{tower: names of its parameters that follow the blocks}."""
    return {"image": image_tower(config.model.image).heads, "text": text_tower(config.model.text).heads}
