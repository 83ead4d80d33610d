"""What clipjax sets for NVIDIA GPUs: XLA's options for the train step, and JAX's share of the memory.

The options travel with each compilation instead of in XLA_FLAGS. So `clipjax plan` compiles the same program for a card
that is not there, other programs of the process keep XLA's defaults, and an option that another jaxlib does not know is
left out; in XLA_FLAGS, an unknown flag ends the process. What the user set in XLA_FLAGS stays: that option is not set.

CLIPJAX_GPU_OPTIONS=off in the environment turns all of this off. docs/gpu.md is the page about it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

SWITCH = "CLIPJAX_GPU_OPTIONS"
MIB = 1 << 20
T = TypeVar("T")


class Option(NamedTuple):
    """An XLA option that clipjax sets for the train step."""

    name: str
    value: bool | int
    what: str  # for the line that says what was set
    several: bool = False  # set only for more than one device


# Names, defaults and meanings: jaxlib 0.10.2 (XLA_FLAGS=--help prints some, xla/debug_options_flags.cc has all).
OPTIONS: tuple[Option, ...] = (
    # Default: off. A sum of gradients starts as soon as they are there, and other work goes on until it is needed.
    # NVIDIA's JAX images set it (JAX-Toolbox, "Environment Variables").
    Option("xla_gpu_enable_latency_hiding_scheduler", True, "collectives overlapped", several=True),
    # Default: 30 MiB. B/16's gradients then move in about 20 pieces and L/14's in 55. Larger pieces use InfiniBand
    # better; the last one, which nothing hides, takes half a millisecond on NVLink. (JAX-Toolbox, "GPU Performance",
    # has much larger ones.) Pieces of gathers and scatters stay as they are: they are a layer each.
    Option("xla_gpu_all_reduce_combine_threshold_bytes", 128 * MIB, "sums in pieces of 128 MiB", several=True),
    # Default: on. cuBLAS alone multiplies: in bfloat16 and at these sizes it is the faster in nearly all cases, adds
    # biases, residuals and GELU as it writes, and needs no trials of Triton's tiles, which take minutes and may choose
    # others, with other rounding, at the next start. (MaxText and JAX-Toolbox set it for large models.)
    Option("xla_gpu_enable_triton_gemm", False, "products by cuBLAS"),
    # Default: 64 MiB. XLA would merge small batches' q, k and v into one product, copy its result apart with the biases
    # that cuBLAS had added, and copy the three gradients together. (Read off a program compiled for an H100.)
    Option("xla_gpu_dot_merger_threshold_mb", 0, "one product a matrix"),
)
MEMORY_FRACTION = "0.9"  # of the card's memory; JAX's default is 0.75, NVIDIA's usual choice 0.8 or 0.9
_MEMORY_VARIABLES = (
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)


def gpu_options(devices: Sequence[Any], environ: Mapping[str, str] = os.environ) -> dict[str, bool | int]:
    """{name: value} of OPTIONS for a program on these devices; {} where they are not GPUs or the user switched it off.

    Options that XLA_FLAGS names are the user's and left out.
    """
    if devices[0].platform not in ("gpu", "cuda") or switched_off(environ):
        return {}
    own = named_flags(environ)
    return {o.name: o.value for o in OPTIONS if o.name not in own and (len(devices) > 1 or not o.several)}


def compile_known(
    compile_with: Callable[[dict[str, bool | int]], T], options: dict[str, bool | int]
) -> tuple[T, list[str]]:
    """(compile_with(options), the names left out): without the options that this jaxlib does not know.

    XLA refuses an unknown option before it compiles anything, so that a second try costs nothing. Every other error is
    raised as it comes.
    """
    options, unknown = dict(options), []
    while True:
        try:
            return compile_with(options), unknown
        except Exception as error:
            refused = re.search(r"No such compile option: '(\w+)'|While setting option (\w+),", str(error))
            name = refused and (refused[1] or refused[2])
            if name not in options:
                raise
            del options[name]
            unknown.append(name)


def describe_options(options: Mapping[str, bool | int]) -> str:
    """What the options do, for one line: "collectives overlapped, ..."; "" for none."""
    return ", ".join(dict.fromkeys(o.what for o in OPTIONS if o.name in options))


def gpu_environment(environ: Mapping[str, str], *, present: bool) -> dict[str, str]:
    """Environment variables to set before JAX first looks for devices; present: whether there is a GPU (gpu_present).

    A variable that the user set is never among them.
    """
    if not present or switched_off(environ) or any(name in environ for name in _MEMORY_VARIABLES):
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


def switched_off(environ: Mapping[str, str]) -> bool:
    """Whether the user asks for XLA's and JAX's own defaults."""
    return environ.get(SWITCH, "").strip().lower() in ("off", "0", "false", "no", "none")


def named_flags(environ: Mapping[str, str]) -> set[str]:
    """The names in XLA_FLAGS: {"xla_gpu_enable_triton_gemm"} for "--xla_gpu_enable_triton_gemm=false".

    XLA_FLAGS may be the name of a file that has them.
    """
    text = environ.get("XLA_FLAGS", "").strip()
    if text and not text.startswith("-"):
        with suppress(OSError):
            text = Path(text).read_text(encoding="utf-8", errors="replace")
    return set(re.findall(r"(?:^|\s)--(\w+)", text))
