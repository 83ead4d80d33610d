"""The accelerators that plans can be made for, by the name that --topology has for them."""

from __future__ import annotations

from clipjax.config import nearest, require
from clipjax.planning.accelerator import GIB, Chip
from clipjax.planning.gpu_cards import GPUS
from clipjax.planning.tpu_chips import TPUS

__all__ = ["CHIPS", "GIB", "Chip", "chip_of_kind", "get_chip"]

CHIPS: dict[str, Chip] = {**TPUS, **GPUS}


def get_chip(name: str) -> Chip:
    """A row of CHIPS. Raises ConfigError for an unknown chip, naming the nearest one and all that are known."""
    require(name in CHIPS, f"--topology: '{name}' is not a chip that plans can be made for.{nearest(name, CHIPS)}")
    return CHIPS[name]


def chip_of_kind(device_kind: str) -> Chip | None:
    """The chip of a JAX device's device_kind; None where CHIPS has none, as for a CPU."""
    return next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)
