"""How far a parameter is from the end of its tower: what layer-wise rates and partly frozen towers count.

distance   parameters
0          what follows the blocks (a tower's heads: last norm, pooling head, projection), and all outside the towers
1          the last block
depth      the first block
depth + 1  what precedes the blocks: embeddings, positions, stem
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from clipjax.config import OptimizerConfig

TOWERS = ("image", "text")
TEMPERATURE = ("logit_scale", "logit_bias")
ADAPTERS = "lora"  # the subtree of adapters, built as the towers that they belong to

Heads = Mapping[str, Collection[str]]  # tower -> names of its parameters that follow the blocks


def distances(params: Any, heads: Heads) -> Any:
    """The tree of distances, int arrays that broadcast to their parameters: [layers, 1, ...] for scanned blocks.

    params: the whole tree, or one that lacks a tower's first blocks, since distances count from the end. An adapter is
    as far from the end as its block.
    """

    def distance(path: tuple, leaf: Any) -> np.ndarray:
        parts, towers = [str(key.key) for key in path], params
        if parts[0] == ADAPTERS:
            parts, towers = parts[1:], params[ADAPTERS]
        tower, name = (*parts, "")[:2]
        if tower not in TOWERS or name in heads.get(tower, ()):
            return np.asarray(0)
        if name == "blocks":
            return np.arange(leaf.shape[0], 0, -1).reshape(-1, *(1,) * (len(leaf.shape) - 1))
        return np.asarray(_depth(towers[tower]) + 1 if (i := _number(name)) is None else _depth(towers[tower]) - i)

    return jax.tree_util.tree_map_with_path(distance, params)


def rate_multipliers(config: OptimizerConfig, params: Any, heads: Heads) -> Any:
    """The tree of factors by which updates are scaled, weight decay included; each broadcasts to its parameter.

    A tower's is its multiplier times layer_decay ** distance: with d blocks and decay r, the embeddings have r^(d+1),
    block i (0 is the first) r^(d-i), and what follows the blocks 1. This is the rule of BEiT (get_num_layer_for_vit).
    timm's param_groups_layer_decay differs in one place: it gives the last norm the rate of the last block, r.
    """

    def factor(path: tuple, distance: np.ndarray) -> np.ndarray:
        part = path[path[0].key == ADAPTERS].key
        return np.float32(multiplier(config, part) * config.layer_decay**distance)

    return jax.tree_util.tree_map_with_path(factor, distances(params, heads))


def multiplier(config: OptimizerConfig, part: str) -> float:
    """The learning-rate multiplier of a part of the parameters: "image", "text", "logit_scale", "decoder", ..."""
    if part in TEMPERATURE:
        return config.temperature_lr_multiplier
    return getattr(config, f"{part}_lr_multiplier") if part in TOWERS else 1.0


def _depth(tower: Mapping[str, Any]) -> int:
    """The number of a tower's blocks, named block_0, block_1, ... or stacked under "blocks"."""
    if stacked := jax.tree.leaves(tower.get("blocks")):
        return stacked[0].shape[0]
    return 1 + max((i for i in map(_number, tower) if i is not None), default=-1)


def _number(name: str) -> int | None:
    """i of "block_i"; None for another name."""
    prefix, _, number = name.rpartition("_")
    return int(number) if prefix == "block" and number.isdecimal() else None
