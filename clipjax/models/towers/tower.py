"""What the rest of clipjax knows of a tower: its row in a table, and the one type that every tower returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.config import ImageTowerConfig, PatchBudget, TextTowerConfig, require
from clipjax.models.tower_flops import TowerFlops

Columns = dict[str, tuple[tuple[int, ...], Any]]  # name of a batch's column -> (shape, dtype)
IMAGE, TEXT = "config.model.image", "config.model.text"  # the sections, as messages name them


class Hidden(NamedTuple):
    """The states of one layer."""

    state: jax.Array  # [B, L, width] as it leaves the layer
    normed: jax.Array | None  # after the tower's last norm; None if the tower does not apply that norm to its tokens


class TowerOutput(NamedTuple):
    """What a tower computes from a batch, in its compute dtype."""

    pooled: jax.Array  # [B, embed_dim], not of unit length
    tokens: jax.Array | None  # [B, L, any width]: what a captioner reads; None where none does
    hidden: tuple[Hidden, ...] = ()  # of the hidden_layers asked for, in their order
    mask: jax.Array | None = None  # [B] int32, the number of leading tokens that are not padding; None: all


@dataclasses.dataclass(frozen=True)
class Tower:
    """A row of IMAGE_TOWERS or TEXT_TOWERS.

    module(config, embed_dim, dtype, activations, name=...) makes a linen module; activations is the sharding of
    [batch, ...] arrays, None to leave it to the compiler. module(x, train, hidden_layers) returns a TowerOutput. A
    module whose blocks are scanned takes frozen_blocks too: the number of first blocks that get no gradient
    (transformer.in_parts). With tokens_optional it takes give_tokens: where that is False, nothing is computed of its
    last block that only the tokens need.
    """

    module: Callable[..., Any]
    config: type  # a frozen dataclass below ImageTowerConfig or TextTowerConfig
    check: Callable[[Any, int], None]  # (config, embed_dim); raises ConfigError for options that do not fit
    columns: Callable[[Any, int], Columns]  # (config, batch size): the batch's columns that the tower reads
    flops: Callable[[Any, int], TowerFlops] | None = None  # (config, embed_dim); None: counted from the traced tower
    hidden_states: bool = False  # gives the states of chosen layers
    tokens_optional: bool = False  # takes give_tokens
    running_statistics: bool = False  # has a collection "batch_stats": no micro-batches while the tower trains
    tensor_axis: tuple[str, ...] = ()  # fields of config that the mesh's tensor axis must divide
    random: tuple[str, ...] = ()  # fields with rates of random drops in training; at 0 it is deterministic
    heads: tuple[str, ...] = ()  # names of the parameters that follow the last block; () if nothing does
    patch_budget: Callable[[Any], PatchBudget] | None = None  # reads Patches; config has the field max_patches
    check_tokenizer: Callable[[Any, Any], None] | None = None  # (config, tokenizer); raises ConfigError
    # (config) of a text tower -> the function needed(ids [..., L]) -> [...] int64: the first columns of each text that
    # the tower needs to compute the same (NumPy); or why it needs all of them. None: it needs all of them
    needed: Callable[[Any], Callable[[np.ndarray], np.ndarray] | str] | None = None
    absent: bool = False  # stands for no tower: a model with it has only the other one


def square_image(config: ImageTowerConfig, batch: int) -> Columns:
    """The column of a tower that reads images of one size."""
    return {"image": ((batch, config.image_size, config.image_size, 3), jnp.uint8)}


def token_ids(config: TextTowerConfig, batch: int) -> Columns:
    """The column of a text tower."""
    return {"text": ((batch, config.context_length), jnp.int32)}


def no_hidden_states(name: str, hidden_layers: tuple[int, ...]) -> None:
    """For a tower without hidden states: raises ConfigError if any are asked for."""
    require(not hidden_layers, f"hidden_layers={hidden_layers}: tower '{name}' has no states of layers to give.")


def check_projection(projects: bool, cure: str, width: int, embed_dim: int, where: str) -> None:
    """Raises ConfigError for a tower without a projection whose width is not embed_dim; cure: what sets one."""
    require(
        projects or width == embed_dim,
        f"{where} without a projection needs width == embed_dim, but width={width} and "
        f"config.model.embed_dim={embed_dim}; set {where}.{cure} or make them equal.",
    )
