"""Contrastive losses of the GLOBAL batch, computed from embeddings that are sharded over the mesh.

Add a loss: one file with a dense form and a blockwise form, one row in LOSSES.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clipjax.config import LossConfig, nearest, require
from clipjax.losses import sigmoid, softmax
from clipjax.losses.tiles import choose_tile
from clipjax.mesh import BATCH_AXES


class Loss(NamedTuple):
    dense: Callable  # (image_embedding, text_embedding, logit_scale, logit_bias) -> loss; plain autodiff
    blockwise: Callable  # per device, inside shard_map: see softmax.blockwise


LOSSES: dict[str, Loss] = {
    "softmax": Loss(softmax.dense, softmax.blockwise),
    "sigmoid": Loss(sigmoid.dense, sigmoid.blockwise),
}


def make_loss(config: LossConfig, mesh: Mesh | None) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """loss_fn(image_embedding, text_embedding, *, logit_scale, logit_bias) -> (loss, metrics), for use under jit.

    image_embedding, text_embedding: [B, D] global arrays, L2-normalised; row i of one belongs to row i of
      the other. logit_scale, logit_bias: scalars.
    loss: float32 scalar, the mean over the global batch, replicated. Its gradient is that of the dense loss
      on one device, for every mesh, `comm` and `tile`; it is computed in the forward pass, tile by tile, and
      nothing of size B x B is kept.
    comm: "all_gather" moves the embeddings once and needs no gradient collective; "ring" rotates blocks of
      texts and never holds more than one device's share; "dense" is the textbook formula with autodiff.

    Raises ConfigError for an unknown loss, a tile that does not divide a device's rows, or (at trace time) a
    batch that does not divide over the mesh.
    """
    require(config.name in LOSSES, f"config.loss.name='{config.name}' is unknown.{nearest(config.name, LOSSES)}")
    require(config.tile >= 0, f"config.loss.tile={config.tile} must be 0 (chosen for you) or positive.")
    loss = LOSSES[config.name]
    if mesh is None or config.comm == "dense":
        return lambda image_embedding, text_embedding, *, logit_scale, logit_bias: (
            loss.dense(image_embedding, text_embedding, logit_scale, logit_bias),
            {},
        )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    exact = exact_gradient(loss.blockwise, mesh, config.comm, config.tile)

    def loss_fn(image_embedding: Any, text_embedding: Any, *, logit_scale: Any, logit_bias: Any):
        batch = image_embedding.shape[0]
        require(
            batch % shards == 0,
            f"The batch of {batch} does not divide over data x fsdp = {shards} devices; see config.global_batch_size.",
        )
        choose_tile(batch // shards, config.tile)
        return exact(image_embedding, text_embedding, logit_scale, logit_bias), {}

    return loss_fn


def exact_gradient(blockwise: Callable, mesh: Mesh, comm: str, tile: int) -> Callable[..., jax.Array]:
    """A differentiable loss of global arrays from a per-device function that makes value and gradients itself.

    The custom rule is around shard_map, so no collective is ever differentiated: what each device computes
    for its rows is the gradient.
    """
    rows, scalar = P(BATCH_AXES), P()
    grads = (rows, rows, scalar, scalar)

    def sharded(with_grads: bool) -> Callable:
        return jax.shard_map(
            functools.partial(blockwise, axis_name=BATCH_AXES, comm=comm, tile=tile, with_grads=with_grads),
            mesh=mesh,
            in_specs=(rows, rows, scalar, scalar),
            out_specs=(scalar, grads if with_grads else None),
            check_vma=False,
        )

    @jax.custom_vjp
    def loss(x, y, scale, bias):
        return sharded(with_grads=False)(x, y, scale, bias)[0]

    def forward(x, y, scale, bias):
        return sharded(with_grads=True)(x, y, scale, bias)

    def backward(grads, cotangent):
        return jax.tree.map(lambda g: g * cotangent, grads)

    loss.defvjp(forward, backward)
    return loss
