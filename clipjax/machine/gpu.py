"""JAX's share of the memory of NVIDIA GPUs, and whether there are any.

CLIPJAX_GPU_OPTIONS=off in the environment leaves the share to JAX (xla_options.py). docs/gpu.md is the page about it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from clipjax.machine.xla_options import switched_off

MEMORY_FRACTION = "0.9"  # of the card's memory; JAX's default is 0.75, NVIDIA's usual choice 0.8 or 0.9
_MEMORY_VARIABLES = (
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)


def gpu_environment(environ: Mapping[str, str], *, present: bool) -> dict[str, str]:
    """Environment variables to set before JAX first looks for devices; present: whether there is a GPU (gpu_present).

    A variable that the user set is never among them.
    """
    if not present or switched_off("gpu", environ) or any(name in environ for name in _MEMORY_VARIABLES):
        return {}
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": MEMORY_FRACTION}


def gpu_present(environ: Mapping[str, str] = os.environ, device_files: Path = Path("/dev")) -> bool:
    """Whether JAX will probably find an NVIDIA GPU, without asking the driver.

    True where the driver's device files exist, and neither CUDA_VISIBLE_DEVICES nor JAX_PLATFORMS hides the GPUs.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    platforms = [name for name in environ.get("JAX_PLATFORMS", "").lower().split(",") if name]
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return False
    if platforms and not {"cuda", "gpu"} & set(platforms):
        return False
    # /dev/dxg is the driver of Windows' subsystem for Linux.
    return any(re.fullmatch(r"nvidia\d+|dxg", path.name) for path in device_files.glob("*"))
