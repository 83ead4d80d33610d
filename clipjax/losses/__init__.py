"""Contrastive losses of the GLOBAL batch, computed from embeddings that are sharded over the mesh.

Add a loss: one file with a LOSS that says what one tile of similarities contributes, one row in LOSSES. See
docs/losses.md for one in twenty lines.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import LossConfig, nearest, require
from clipjax.losses import coca, cyclip, dcl, distill, label_smoothing, ntxent, sigmoid, softmax
from clipjax.losses.pairs import Inputs, Loss, dense, over_all_pairs
from clipjax.losses.tiles import choose_tile
from clipjax.mesh import batch_shards

LOSSES: dict[str, Loss] = {
    "softmax": softmax.LOSS,
    "sigmoid": sigmoid.LOSS,
    "dcl": dcl.LOSS,
    "label_smoothing": label_smoothing.LOSS,
    "ntxent": ntxent.LOSS,
    "cyclip": cyclip.LOSS,
    "distill": distill.LOSS,
    "coca": coca.LOSS,
}


def make_loss(
    config: LossConfig, mesh: Mesh | None, losses: dict[str, Loss] = LOSSES
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """loss_fn(image_embedding, text_embedding, *, logit_scale, logit_bias, ...) -> (loss, metrics), for use under jit.

    image_embedding, text_embedding: [B, D] global arrays, L2-normalised; row i of one belongs to row i of the other.
    logit_scale, logit_bias: scalars. The other arguments are those of Inputs: pair_id for config.repeats other than
    "negatives", the teacher's for "distill", the captions' for "coca".
    loss: float32 scalar, the mean over the global batch, replicated. Its gradient is that of the dense loss on one
      device, for every mesh, `comm` and `tile`; it is made in the forward pass, tile by tile, and nothing of size
      B x B is kept. metrics: the parts of a loss that has several.
    comm: "all_gather" moves the embeddings once and needs no gradient collective; "ring" sends blocks of texts around
      in both directions and never holds more than three of them; "chunked" gathers them part by part; "dense" is the
      textbook formula with autodiff.
    dtype: "bfloat16" rounds the embeddings first, straight through for the gradient, and sends them as two bytes; the
      loss and the gradients of what was rounded are float32's.
    losses: the table to look in; a loss of your own may come from outside.

    Raises ConfigError for an unknown loss, a tile that does not divide a device's rows, or (at trace time) a batch
    that does not divide over the mesh or an input the loss needs and was not given.
    """
    require(config.name in losses, f"config.loss.name='{config.name}' is unknown.{nearest(config.name, losses)}")
    require(config.tile >= 0, f"config.loss.tile={config.tile} must be 0 (chosen for you) or positive.")
    loss = losses[config.name]
    shards = 1 if mesh is None else batch_shards(mesh)
    if mesh is None or config.comm == "dense":
        mean_loss = dense(loss, config.repeats)
    else:
        mean_loss = over_all_pairs(
            loss, mesh, comm=config.comm, tile=config.tile, repeats=config.repeats, dtype=config.dtype
        )

    def loss_fn(image_embedding: jax.Array, text_embedding: jax.Array, *, logit_scale, logit_bias, **others):
        inputs = rounded(Inputs(image_embedding, text_embedding, logit_scale, logit_bias, **others), config.dtype)
        batch = image_embedding.shape[0]
        require(
            batch % shards == 0,
            f"The batch of {batch} does not divide over data x fsdp = {shards} devices; see config.global_batch_size.",
        )
        choose_tile(batch // shards, config.tile)
        for name in (*loss.needs, *(["pair_id"] if config.repeats != "negatives" else [])):
            require(getattr(inputs, name) is not None, f"config.loss ('{config.name}') needs {name}, found none.")
        pair_id = None if config.repeats == "negatives" else inputs.pair_id
        value, metrics = mean_loss(*loss.features(inputs, config), pair_id)
        if loss.extra is not None:
            extra = loss.extra(inputs, config)
            value, metrics = value + sum(extra.values()), metrics | extra
        return value, {f"{name}_loss": part for name, part in metrics.items()} if len(metrics) > 1 else {}

    return loss_fn


def rounded(inputs: Inputs, dtype: str) -> Inputs:
    """inputs with embeddings, arrays [B, D], at dtype's precision, still float32; their gradient passes unchanged."""
    if dtype == "float32":
        return inputs
    kind = jnp.finfo(dtype)

    def straight_through(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        # Not astype there and back, which XLA may leave out.
        return x + jax.lax.stop_gradient(jax.lax.reduce_precision(x, kind.nexp, kind.nmant) - x)

    return Inputs(*(straight_through(a) if getattr(a, "ndim", 0) == 2 else a for a in inputs))
