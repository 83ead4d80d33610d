"""The published peak of the device that a run computes on, to which its FLOP/s are compared (MFU)."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from clipjax.planning.chips import CHIPS, Chip, chip_of_kind

# Devices with the matrix units of a row of CHIPS under another device_kind, and kinds as other versions of JAX name
# them. NVIDIA's datasheets give the same dense peaks for A100 with 40 and 80 GB, on SXM and on PCIe.
SAME_UNITS = {
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-PCIE-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA GH200 480GB": "h100",
}
# Where JAX is told to multiply more precisely, float32 products cost several passes, or leave the matrix units.
DEFAULT_PRECISIONS = (None, "default", "fastest", "bfloat16", "tensorfloat32")


def peak_of_device(device: Any, dtype: str) -> float | None:
    """FLOP/s of a JAX device in products of `dtype`, "bfloat16" or "float32", dense; None where none is known.

    device: anything with a device_kind. None for CPUs, chips without a row, parts of a card (MIG), and float32 under
    another jax_default_matmul_precision than JAX's own.
    """
    chip = chip_with_units_of(device.device_kind)
    if chip is None:
        return None
    if dtype == "bfloat16":
        return chip.peak
    return chip.float32_peak if jax.config.jax_default_matmul_precision in DEFAULT_PRECISIONS else None


def peak_of_mesh(mesh: Mesh, dtype: str) -> float | None:
    """FLOP/s of all devices of a mesh together; None as peak_of_device."""
    peak = peak_of_device(mesh.devices.flat[0], dtype)
    return peak and peak * mesh.devices.size


def chip_with_units_of(device_kind: str) -> Chip | None:
    """The row of CHIPS whose matrix units a device has; None where none is known."""
    return chip_of_kind(device_kind) or CHIPS.get(SAME_UNITS.get(device_kind, ""))
