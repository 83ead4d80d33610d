"""How devices exchange embeddings: one file for each strategy, one row in COMMS.

A row makes the mean loss of the global batch from the description of one tile. Three rows share the passes over tiles
in passes.py. Their files define only how each row of the matrix meets each column: `collect` and `differentiate`, and
what that costs: `work`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from clipjax.config import LossConfig
from clipjax.losses.comm import all_gather, chunked, dense, ring
from clipjax.losses.comm.cost import Meeting, Work, cheapest
from clipjax.losses.comm.passes import MeanLoss, by_tiles
from clipjax.losses.loss import Loss


class Comm(NamedTuple):
    """A way to exchange embeddings, or one that chooses among the others."""

    # None: `choose` names the row that does
    mean_loss: Callable[[Loss, LossConfig, Mesh | None], MeanLoss] | None = None
    # its cost; None: "auto" never takes it
    work: Callable[[Meeting], Work] | None = None
    choose: Callable[[Meeting, Mesh], str] | None = None


def cheapest_comm(meeting: Meeting, mesh: Mesh) -> str:
    """The row of COMMS that costs least by its own count; see cost.py."""
    return cheapest({name: row.work for name, row in COMMS.items() if row.work is not None}, meeting, mesh)


COMMS: dict[str, Comm] = {
    "auto": Comm(choose=cheapest_comm),
    "all_gather": Comm(by_tiles(all_gather.STRATEGY), all_gather.work),
    "chunked": Comm(by_tiles(chunked.STRATEGY), chunked.work),
    "ring": Comm(by_tiles(ring.STRATEGY), ring.work),
    "dense": Comm(dense.mean_loss),
}
