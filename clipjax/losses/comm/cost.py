"""What an exchange of embeddings costs: a model of one device's step, from which comm="auto" takes the cheapest.

    seconds = visits * rates.visit + FLOPs / rates.flops + collectives * rates.latency + bytes / rates.bandwidth

where bytes that move while tiles are computed cost only what they take longer than the tiles. Between slices, a gather
brings each device its own part of the other slices' rows, which the slice then shares over its links; a ring's hop
crosses with all of a device's rows. The rates are of a platform, not of one chip: mostly the numbers of tiles, of
products and of hops decide, which each strategy counts for itself. In the committed tables
(benchmarks/results/loss_memory_v5e_16x16.json and loss_memory_cpu_8.json) the model's choice is within 7% of the
fastest tiled form everywhere, and never slower than "all_gather".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from clipjax.losses.tile_sizes import tile_shape
from clipjax.mesh import batch_shards


class Meeting(NamedTuple):
    """What meets: the embeddings of one global batch on the devices that share it."""

    rows: int  # of one device
    devices: int  # data x fsdp
    width: int  # of an embedding
    largest: int  # side of a default tile; see tile_sizes.largest_tile
    itemsize: int = 4  # bytes of an element that moves
    passes: int = 2  # over the tiles; 1 for a loss that is a plain sum over pairs
    tile: int = 0  # config.loss.tile

    @property
    def batch(self) -> int:
        """Rows of all devices together."""
        return self.rows * self.devices

    def tiles(self, columns: int) -> int:
        """Tiles of a device's rows with `columns` columns."""
        height, width = tile_shape(self.rows, columns, self.rows, self.tile, self.largest)
        return self.rows // height * (columns // width)


class Work(NamedTuple):
    """What one device does for the value and the gradient of one step's loss."""

    visits: float  # tiles computed, counted in every pass
    products: float  # of its rows with all columns: 2 rows batch width FLOPs each
    received: float  # bytes
    collectives: float  # that wait for one another
    hidden: bool  # whether they move while tiles are computed
    shared: bool = True  # whether the devices of a slice bring each other what comes from other slices


class Rates(NamedTuple):
    """Of one device."""

    visit: float  # seconds to begin a tile
    flops: float  # FLOP/s of float32 products at full precision
    bandwidth: float  # bytes/s received
    latency: float  # seconds of a collective that moves nothing
    far: float = math.inf  # bytes/s received from other slices or hosts
    sharing: float = 1.0  # by what a device's received bytes are divided for its own part of those from others


# By JAX's platform, inside a slice or a process. TPU: the compiler's estimates for v5e, and its links. CPU: measured on
# eight devices of two cores. GPU: float32 products of an H100, NVLink, and the usual times to start kernels.
RATES: dict[str, Rates] = {
    "tpu": Rates(visit=7e-6, flops=2.5e13, bandwidth=1.8e11, latency=2e-6),
    "gpu": Rates(visit=3e-5, flops=4e13, bandwidth=2e11, latency=2e-5),
    "cpu": Rates(visit=1e-4, flops=4e10, bandwidth=2e9, latency=1e-4),
}
# Between slices, and between processes on other platforms than TPU.
FAR = {"bandwidth": 6e9, "latency": 2e-4}


def rates_of(mesh: Mesh) -> Rates:
    """The rates of the mesh's platform and network: the same on every process."""
    devices = mesh.devices.flat
    platform = devices[0].platform
    rates = RATES.get(platform, RATES["gpu"])
    places = {(getattr(d, "slice_index", None), platform != "tpu" and d.process_index) for d in devices}
    if len(places) == 1:
        return rates
    # Of p places, the others hold (p - 1) / p of the rows, and each of the n / p devices of a place brings its part.
    sharing = 1.0 if platform == "cpu" else mesh.devices.size / (len(places) - 1)
    latency = max(rates.latency, FAR["latency"])
    return rates._replace(latency=latency, far=FAR["bandwidth"], sharing=sharing)


def seconds(work: Work, meeting: Meeting, rates: Rates) -> float:
    """The model's time for one step's loss."""
    flops = 2.0 * work.products * meeting.rows * meeting.batch * meeting.width
    computing = work.visits * rates.visit + flops / rates.flops
    moving = max(work.received / rates.bandwidth, work.received / rates.far / (rates.sharing if work.shared else 1))
    return work.collectives * rates.latency + (max(computing, moving) if work.hidden else computing + moving)


def cheapest(works: Mapping[str, Callable[[Meeting], Work]], meeting: Meeting, mesh: Mesh) -> str:
    """The name that takes the least seconds; of equals, and where one device has all rows, the first."""
    if batch_shards(mesh) == 1:
        return next(iter(works))
    rates = rates_of(mesh)
    return min(works, key=lambda name: seconds(works[name](meeting), meeting, rates))
