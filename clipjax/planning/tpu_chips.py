"""The TPUs that plans can be made for: the memory, speed and bandwidth of one device of each.

Sources: Google Cloud's TPU system architecture pages (peak rates, HBM, bandwidth; data-centre network: 6.4 Tb/s for the
256 chips of a v5e pod, 25.6 for v6e's, 50 Gb/s for a v5p chip; v4 and tpu7x are assumed to have v5p's) and "How to
Scale Your Model" (jax-ml.github.io/scaling-book, one-way bandwidth of an ICI link). `clock` is chosen so that the
matrix units' width times clock is the published peak. `hbm` is what the compiler reports as available, which is below
the nominal size.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipjax.planning.accelerator import GIB, Chip


@dataclass(frozen=True)
class Tpu(Chip):
    """Figures of one JAX device: a chip, or one of its two cores where each core is a device (tpu7x)."""

    ici_link: float  # bytes/s, one way
    torus: int  # dimensions of the network inside a slice
    clock: float  # cycles/s
    dcn: float  # bytes/s between slices, one way
    cores: int = 1  # cores that share the work of one device ("megacore")
    topology_options: tuple[tuple[str, str], ...] = ()  # what JAX must be told to describe a slice

    @property
    def float32_peak(self) -> float:
        """That of bfloat16: JAX multiplies float32 in one pass of the matrix units, rounded to bfloat16."""
        return self.peak

    def transfer_seconds(self, kind: str, sent: float, received: float, per_host: int, hosts: int) -> float:
        """A permutation uses one link; other collectives use both directions of every dimension of the torus."""
        links = 1 if kind == "collective-permute" else 2 * self.torus
        return received / (links * self.ici_link)


MEGACORE = (("chip_config_name", "megacore"),)  # JAX describes v4's two cores as one device only when told so
TPUS: dict[str, Tpu] = {
    chip.name: chip
    for chip in (
        Tpu(
            "v4",
            "TPU v4",
            31.0 * GIB,
            275e12,
            1.2e12,
            4.5e10,
            3,
            1.05e9,
            6.25e9,
            2,
            MEGACORE,
        ),
        Tpu("v5e", "TPU v5 lite", 15.75 * GIB, 197e12, 8.1e11, 4.5e10, 2, 1.5e9, 3.125e9),
        Tpu("v5p", "TPU v5", 95.74 * GIB, 459e12, 2.765e12, 9e10, 3, 1.75e9, 6.25e9, 2),
        Tpu("v6e", "TPU v6 lite", 31.25 * GIB, 918e12, 1.6e12, 9e10, 2, 1.75e9, 1.25e10),
        Tpu("tpu7x", "TPU7x", 94.75 * GIB, 1153.5e12, 3.69e12, 9e10, 3, 2.2e9, 6.25e9),
    )
}
