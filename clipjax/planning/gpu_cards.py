"""The GPUs that plans can be made for, and what XLA must be told to compile for one that is not there.

Sources, by column of the table:

- peak, float32 rate, HBM, NVLink: NVIDIA's datasheets of A100 80GB SXM, H100 SXM, H200 SXM, B200 (HGX) and L4, dense
  rates. An NVLink figure is one way, half of the advertised sum of both.
- multiprocessors, shared memory, registers, L2, clock, compute capability, exact memory size, bandwidth: the target
  descriptions in XLA's own sources (xla/backends/gpu/target_config/specs: a100_sxm_80, h100_sxm, h200, b200), which
  were read from cards; L4: NVIDIA's Ada architecture whitepaper, CUDA's table of compute capability 8.9, and the
  23,034 MiB that nvidia-smi shows.
- network: one adapter a GPU in DGX A100 (200 Gb/s), DGX H100, DGX H200 and DGX B200 (400 Gb/s); L4: the 100 Gb/s of
  Google Cloud's g2-standard-96, shared by its eight cards.
- sustained: the best rate that a bfloat16 product has been seen to sustain, as a share of peak: "Maximum Achievable
  Matmul FLOPS" of Stas Bekman's Machine Learning Engineering book (A100 271.2, H100 and H200 794.5, B200 1745
  TFLOP/s). For the L4 no such figure was found: 0.6 is an assumption, because 72 W do not sustain its boost clock.
- attention: the shares of peak that the matrix units reach in fused attention, forward and backward; the time for its
  bytes is added. H200: fitted to cuDNN's kernels, six shapes in profiled steps of CLIP B/16, B/32 and L/14 and four
  timed alone, 50 to 578 tokens, heads of 64 and 72, with an RMS error of 10%. H100: the same processor, but not
  measured. A100: what FlashAttention-2 (2307.08691) reaches in long sequences, 0.60 and 0.50, scaled as the fit is to
  what FlashAttention-3 (2407.08608) shows for the H100, 0.45 and 0.40. That scaling, the A100's shares for the L4 and
  the H200's for the B200 are assumptions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from clipjax.config import require
from clipjax.machine.gpu import gpu_environment
from clipjax.planning.accelerator import Chip

JAX_FRACTION = 0.75  # what JAX reserves of a GPU's memory unless one of these says otherwise
FRACTION_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
HOST_CARDS = 8  # of an HGX or DGX host, and of g2-standard-96


@dataclass(frozen=True)
class Gpu(Chip):
    """Figures of one card. `hbm` is the part of its memory that a run reserves."""

    total: int  # bytes, as the driver reports them
    vector_peak: float  # float32 FLOP/s outside the matrix units
    processors: int  # streaming multiprocessors
    nvlink: float  # bytes/s one way to the cards of the same host; an L4's PCIe
    switched_sums: bool  # the switch adds up (NVLink SHARP), so that a sum crosses a link once each way
    network: float  # bytes/s one way to other hosts, for one card
    sustained: float  # share of peak that large products keep up
    attention: tuple[float, float]  # share of peak of fused attention, forward and backward
    capability: tuple[int, int]
    l2: int  # bytes
    clock: float  # GHz
    lanes: int  # float32 units of a multiprocessor
    threads: int  # of a multiprocessor
    shared_memory: int  # bytes of a multiprocessor

    def transfer_seconds(self, kind: str, sent: float, received: float, per_host: int, hosts: int) -> float:
        """NVLink inside a host; between hosts, the group's cards of a host share the bytes that their host needs.

        A ring over several hosts passes each byte through every host once, over as many adapters as the group has
        cards there, so that an adapter moves 1 / per_host of what a card receives; a permutation's bytes are not
        shared. A sum inside one host crosses a link once each way where the switch adds up.
        """
        inside = sent if kind == "all-reduce" and self.switched_sums and hosts == 1 else received
        if hosts == 1:
            return inside / self.nvlink
        share = 1 if kind in ("collective-permute", "all-to-all", "ragged-all-to-all") else per_host
        return max(received / share / self.network, received / self.nvlink if per_host > 1 else 0.0)

    @property
    def float32_peak(self) -> float:
        """That of TF32, in which JAX multiplies float32: half of bfloat16's on all of these cards."""
        return self.peak / 2

    @property
    def memory(self) -> float:
        """Bytes of the card."""
        return float(self.total)

    def in_this_environment(self) -> Gpu:
        """The card with the memory that a run will reserve of it."""
        return replace(self, hbm=memory_fraction() * self.total)


def _gpu(name: str, kind: str, total: int, peak: float, bandwidth: float, **figures: object) -> Gpu:
    return Gpu(name, kind, JAX_FRACTION * total, peak, bandwidth, total=total, **figures)


_AMPERE, _HOPPER = (0.53, 0.52), (0.40, 0.42)

GPUS: dict[str, Gpu] = {
    card.name: card
    for card in (
        _gpu(
            "a100", "NVIDIA A100-SXM4-80GB", 85_100_068_864, 312e12, 2.039e12, vector_peak=19.5e12, processors=108,
            nvlink=3e11, switched_sums=False, network=2.5e10, sustained=0.869, attention=_AMPERE, capability=(8, 0),
            l2=41_943_040, clock=1.41, lanes=64, threads=2048, shared_memory=167_936,
        ),
        _gpu(
            "h100", "NVIDIA H100 80GB HBM3", 84_942_979_072, 989.4e12, 3.352e12, vector_peak=66.9e12, processors=132,
            nvlink=4.5e11, switched_sums=True, network=5e10, sustained=0.803, attention=_HOPPER, capability=(9, 0),
            l2=52_428_800, clock=1.98, lanes=128, threads=2048, shared_memory=233_472,
        ),
        _gpu(
            "h200", "NVIDIA H200", 151_397_597_184, 989.4e12, 4.8e12, vector_peak=66.9e12, processors=132,
            nvlink=4.5e11, switched_sums=True, network=5e10, sustained=0.803, attention=_HOPPER, capability=(9, 0),
            l2=52_428_800, clock=1.98, lanes=128, threads=2048, shared_memory=233_472,
        ),
        _gpu(
            "b200", "NVIDIA B200", 191_514_411_008, 2250e12, 7.672e12, vector_peak=75e12, processors=148,
            nvlink=9e11, switched_sums=True, network=5e10, sustained=0.776, attention=_HOPPER, capability=(10, 0),
            l2=132_644_864, clock=1.965, lanes=128, threads=2048, shared_memory=233_472,
        ),
        _gpu(
            "l4", "NVIDIA L4", 24_152_899_584, 121e12, 3e11, vector_peak=30.3e12, processors=58,
            nvlink=3.2e10, switched_sums=False, network=1.5625e9, sustained=0.6, attention=_AMPERE, capability=(8, 9),
            l2=50_331_648, clock=2.04, lanes=128, threads=1536, shared_memory=102_400,
        ),
    )
}  # fmt: skip


def memory_fraction() -> float:
    """The share of a card's memory that a run reserves: the environment's, or what clipjax sets (clipjax.machine.gpu).

    Raises ConfigError where the environment's is not a share.
    """
    environment = os.environ | gpu_environment(os.environ, present=True)
    variable = next((name for name in FRACTION_VARIABLES if environment.get(name)), None)
    if variable is None:
        return JAX_FRACTION
    try:
        fraction = float(environment[variable])
    except ValueError:
        fraction = 0.0
    wrong = f"{variable}={environment[variable]} in the environment is not a share between 0 and 1."
    require(0 < fraction <= 1, wrong)
    return fraction


def target_config(card: Gpu, cudnn: tuple[int, int]) -> str:
    """The GpuTargetConfig, as text, that XLA compiles for. cudnn: version of the library that builds its graphs."""
    major, minor = card.capability
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared_memory} shared_memory_per_block_optin: {card.shared_memory - 1024}
  threads_per_core_limit: {card.threads} core_count: {card.processors} fpus_per_core: {card.lanes}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {card.hbm_bandwidth:.0f} l2_cache_size: {card.l2} clock_rate_ghz: {card.clock}
  device_memory_size: {card.total} registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} }}
device_description_str: "{card.device_kind}"
"""
