"""Contrastive losses of the GLOBAL batch, computed from embeddings that are sharded over the mesh.

    loss_fn = make_loss(config.loss, mesh)
    loss, metrics = loss_fn(image_embedding, text_embedding, logit_scale=t, logit_bias=b)     # under jit

To add a loss, write one file that describes one tile of similarities, and one row in LOSSES; docs/losses.md shows one
in twenty lines. To add a way to exchange embeddings (config.loss.comm), write a file and a row in clipjax.losses.comm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import LossConfig, ModelConfig, Part, nearest, require
from clipjax.losses import coca, cyclip, dcl, distill, label_smoothing, ntxent, sigmoid, softmax
from clipjax.losses.comm import COMMS
from clipjax.losses.comm.cost import Meeting
from clipjax.losses.loss import Inputs, Loss, Pairs, Uninformed
from clipjax.losses.pairwise import pairwise, sum_over_pairs
from clipjax.losses.tile_sizes import check_tile, largest_tile
from clipjax.mesh import batch_shards

__all__ = [
    "COMMS",
    "LOSSES",
    "Inputs",
    "Loss",
    "Pairs",
    "Uninformed",
    "check_loss",
    "chosen_comm",
    "make_loss",
    "pairwise",
    "sum_over_pairs",
    "uninformed",
]

# Each row makes a Loss from its config: LOSSES["cyclip"](CyclipConfig()). Its check takes (LossConfig, ModelConfig).
LOSSES: dict[str, Part] = {
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
    config: LossConfig, mesh: Mesh | None, losses: Mapping[str, Part] = LOSSES
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """loss_fn(image_embedding, text_embedding, *, logit_scale, logit_bias, ...) -> (loss, metrics), for use under jit.

    image_embedding, text_embedding: [B, D] global arrays, L2-normalised; row i of one belongs to row i of the other.
    logit_scale, logit_bias: scalars. The other arguments are those of Inputs: pair_id unless config.repeats is
      "negatives", and what the loss needs (a teacher's embeddings, captions).
    loss: float32 scalar, the mean over the global batch, replicated. For every mesh, `comm` and `tile`, its gradient is
      that of the dense loss on one device; it is computed in the forward pass, tile by tile, and nothing of size B x B
      is kept. metrics: the parts of a loss that has several.
    config.comm: "all_gather" moves the embeddings once and needs no gradient collective. "ring" sends blocks of texts
      around in both directions and never holds more than three of them. "chunked" gathers them part by part. "dense"
      is the textbook formula with autodiff. "auto" takes one of the first three, see chosen_comm. mesh=None is "dense".
    config.dtype: "bfloat16" rounds the embeddings first and moves them as two bytes an element. The loss and its
      gradients are computed in float32; a gradient passes through the rounding unchanged.
    losses: the table to look in; pass your own to use a loss that is not in LOSSES.

    Raises ConfigError for an unknown loss or comm, a tile that does not divide a device's rows, or (at trace time) a
    batch that does not divide over the mesh or an input that the loss needs and was not given.
    """
    loss, shards = _loss(config, losses), 1 if mesh is None else batch_shards(mesh)

    def loss_fn(image_embedding: jax.Array, text_embedding: jax.Array, *, logit_scale, logit_bias, **others):
        inputs = Inputs(image_embedding, text_embedding, logit_scale, logit_bias, **others, shards=shards)
        inputs = rounded(inputs, config.dtype)
        batch = image_embedding.shape[0]
        require(
            batch % shards == 0,
            f"The batch of {batch} does not divide over data x fsdp = {shards} devices; see config.global_batch_size.",
        )
        check_tile(batch // shards, config.tile)
        for name in (*loss.needs, *(["pair_id"] if config.repeats != "negatives" else [])):
            require(getattr(inputs, name) is not None, f"config.loss ('{config.name}') needs {name}, which is missing.")
        pair_id = None if config.repeats == "negatives" else inputs.pair_id
        comm = chosen_comm(config, mesh, *image_embedding.shape, losses)
        value, metrics = COMMS[comm].mean_loss(loss, config, mesh)(*loss.features(inputs), pair_id)
        if loss.extra is not None:
            extra = loss.extra(inputs)
            value, metrics = value + sum(extra.values()), metrics | extra
        return value, {f"{name}_loss": part for name, part in metrics.items()} if len(metrics) > 1 else {}

    return loss_fn


def chosen_comm(
    config: LossConfig, mesh: Mesh | None, batch: int, width: int, losses: Mapping[str, Part] = LOSSES
) -> str:
    """The row of COMMS that computes this loss: config.comm, or the one that "auto" takes.

    batch: rows of all devices; width: of an embedding. The choice follows from these, the loss, its tile and dtype, and
    the mesh, by the model in clipjax/losses/comm/cost.py; it is the same on every process.
    """
    name = "dense" if mesh is None else config.comm
    if COMMS[name].choose is None:
        return name
    passes = 1 if _loss(config, losses).per_example is None else 2
    rows, itemsize = batch // batch_shards(mesh), jnp.dtype(config.dtype).itemsize
    meeting = Meeting(rows, batch_shards(mesh), width, largest_tile(mesh), itemsize, passes, config.tile)
    return COMMS[name].choose(meeting, mesh)


def uninformed(config: LossConfig, pairs: int, losses: Mapping[str, Part] = LOSSES) -> Uninformed | None:
    """What this loss is at least, on a global batch of `pairs`, for towers that have learned nothing.

    None where the loss makes no statement, and for one pair, which has no others to be told from.
    """
    statement = _loss(config, losses).uninformed
    return statement(pairs) if statement and pairs > 1 else None


def check_loss(config: LossConfig, model: ModelConfig, rows: int) -> None:
    """Refuses a loss that cannot train this model; rows: of the batch on one device. Raises ConfigError."""
    needs = _loss(config, LOSSES).needs
    check_tile(rows, config.tile)
    check = LOSSES[config.name].check
    if check is not None:
        check(config, model)
    require(
        not model.decoder.depth or "caption_nll" in needs,
        f"config.loss.name='{config.name}' with config.model.decoder.depth={model.decoder.depth}: this loss reads no "
        "captions. Set depth=0, or choose a loss that does ('coca').",
    )


def rounded(inputs: Inputs, dtype: str) -> Inputs:
    """inputs with embeddings ([B, D] arrays) rounded to dtype's precision, still float32; gradients pass unchanged."""
    if dtype == "float32":
        return inputs
    kind = jnp.finfo(dtype)

    def straight_through(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        # Not astype there and back, which XLA may leave out.
        return x + jax.lax.stop_gradient(jax.lax.reduce_precision(x, kind.nexp, kind.nmant) - x)

    return Inputs(*(straight_through(a) if getattr(a, "ndim", 0) == 2 else a for a in inputs))


def _loss(config: LossConfig, losses: Mapping[str, Part]) -> Loss:
    require(config.name in losses, f"config.loss.name='{config.name}' is unknown.{nearest(config.name, losses)}")
    row = losses[config.name]
    require(
        isinstance(config, row.config),
        f"config.loss is a {type(config).__name__}, but '{config.name}' reads a {row.config.__name__}.",
    )
    require(config.comm in COMMS, f"config.loss.comm='{config.comm}' is unknown.{nearest(config.comm, COMMS)}")
    require(config.tile >= 0, f"config.loss.tile={config.tile} must be positive, or 0 for the default.")
    return row(config)
