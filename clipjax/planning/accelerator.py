"""What a plan needs to know of any accelerator: the figures of one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """Figures of one JAX device. Each maker's rows add their own: clipjax.planning.tpu_chips, gpu_cards."""

    name: str
    device_kind: str
    hbm: float  # bytes a program may use
    peak: float  # bfloat16 FLOP/s, dense
    hbm_bandwidth: float  # bytes/s

    @property
    def float32_peak(self) -> float:
        """FLOP/s of float32 products as JAX computes them unless it is told to be more precise."""
        raise NotImplementedError

    @property
    def memory(self) -> float:
        """Bytes that the device has, of which a program may use `hbm`."""
        return self.hbm

    def in_this_environment(self) -> Self:
        """The chip with what the process's environment says of it. Raises ConfigError for a variable it cannot use."""
        return self

    def transfer_seconds(self, kind: str, sent: float, received: float, per_host: int, hosts: int) -> float:
        """The least time of a collective, from published bandwidths.

        kind: HLO's opcode, such as "all-reduce". sent: bytes of one device's input; received: what one device receives
        with ring algorithms. per_host: devices of the group on one host; hosts: how many hosts the group spans.
        """
        raise NotImplementedError
