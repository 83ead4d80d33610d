"""A tower's output before it is of unit length, and the states of its layers: for models built on a tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.mesh import batch_sharding, param_shardings, replicated
from clipjax.models.dual_encoder import IMAGE_TOWERS, TEXT_TOWERS, run_tower
from clipjax.models.hidden import Hidden
from clipjax.models.pixels import normalize_pixels
from clipjax.train_step import abstract_state, eval_variables


class Encoded(NamedTuple):
    pooled: Any  # [B, embed_dim]: what embed_images and embed_texts bring to unit length
    hidden: tuple[Hidden, ...]  # of the layers asked for, [B, L, width]; a class token comes first (CoCa: last)


def make_encode(config: ExperimentConfig, mesh: Mesh, side: str) -> Callable[[Any, Any, tuple[int, ...]], Encoded]:
    """encode(variables, x, hidden_layers) -> Encoded, jitted, whole on every device; side: "image" or "text".

    variables: {"params", "batch_stats"}; x: uint8 images or Patches, or ids [B, L] int32, sharded over the batch.
    hidden_layers: see hidden.layer_indices; ConfigError for a tower that has none to give, or not this one.
    """
    model, pixels, sharding = config.model, config.data.pixels, batch_sharding(mesh)
    settings, table = getattr(model, side), {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}[side]
    dtype = jnp.dtype(model.dtype)
    tower = table[settings.name](settings, model.embed_dim, dtype, sharding)

    def encode(variables: Any, x: Any, hidden_layers: tuple[int, ...]) -> Encoded:
        if side == "image":
            x = normalize_pixels(x, pixels.mean, pixels.std, dtype)
        own = {collection: tree[side] for collection, tree in variables.items() if side in tree}
        pooled, _, hidden = run_tower(tower.bind(own), x, False, hidden_layers)
        return Encoded(pooled, hidden)

    shardings = param_shardings(eval_variables(abstract_state(config, mesh)), mesh)
    return jax.jit(encode, static_argnums=2, in_shardings=(shardings, sharding), out_shardings=replicated(mesh))
