"""How devices exchange embeddings: one file for each strategy, one row in COMMS.

A row makes the mean loss of the global batch from the description of one tile. Three rows share the passes over tiles
in passes.py. Their files define only how each row of the matrix meets each column: `collect` and `differentiate`.
"""

from __future__ import annotations

from collections.abc import Callable

from jax.sharding import Mesh

from clipjax.config import LossConfig
from clipjax.losses.comm import all_gather, chunked, dense, ring
from clipjax.losses.comm.passes import MeanLoss, by_tiles
from clipjax.losses.loss import Loss

COMMS: dict[str, Callable[[Loss, LossConfig, Mesh | None], MeanLoss]] = {
    "dense": dense.mean_loss,
    "all_gather": by_tiles(all_gather.STRATEGY),
    "chunked": by_tiles(chunked.STRATEGY),
    "ring": by_tiles(ring.STRATEGY),
}
