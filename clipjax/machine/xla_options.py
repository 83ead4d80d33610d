"""XLA's options that clipjax sets for the train step, for NVIDIA GPUs and for TPUs.

They travel with each compilation instead of in XLA_FLAGS or LIBTPU_INIT_ARGS. So `clipjax plan` compiles the same
program for devices that are not there, other programs of the process keep XLA's defaults, and an option that another
jaxlib or libtpu does not know is left out; among the flags, an unknown one ends the process. What the user set there
stays: that option is not set.

CLIPJAX_GPU_OPTIONS=off and CLIPJAX_TPU_OPTIONS=off in the environment turn this off. docs/gpu.md and docs/plan.md are
the pages about it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

SWITCHES = {"gpu": "CLIPJAX_GPU_OPTIONS", "tpu": "CLIPJAX_TPU_OPTIONS"}
PLACES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # where users set options
PAGES = {"gpu": "docs/gpu.md", "tpu": "docs/plan.md"}
MIB = 1 << 20
T = TypeVar("T")


class Option(NamedTuple):
    """An XLA option that clipjax sets for the train step."""

    platform: str  # a key of SWITCHES
    name: str
    value: bool | int
    what: str  # for the line that says what was set
    several: bool = False  # set only for more than one device
    kinds: tuple[str, ...] = ()  # of devices, by JAX's device_kind; (): all


OPTIONS: tuple[Option, ...] = (
    # Names, defaults and meanings: jaxlib 0.10.2 (XLA_FLAGS=--help prints some, xla/debug_options_flags.cc has all).
    # Default: off. A sum of gradients starts as soon as they are there, and other work goes on until it is needed.
    # NVIDIA's JAX images set it (JAX-Toolbox, "Environment Variables").
    Option("gpu", "xla_gpu_enable_latency_hiding_scheduler", True, "collectives overlapped", several=True),
    # Default: 30 MiB. B/16's gradients then move in about 20 pieces and L/14's in 55. Larger pieces use InfiniBand
    # better; the last one, which nothing hides, takes half a millisecond on NVLink. (JAX-Toolbox, "GPU Performance",
    # has much larger ones.) Pieces of gathers and scatters stay as they are: they are a layer each.
    Option("gpu", "xla_gpu_all_reduce_combine_threshold_bytes", 128 * MIB, "sums in pieces of 128 MiB", several=True),
    # Default: on. cuBLAS alone multiplies: in bfloat16 and at these sizes it is the faster in nearly all cases, adds
    # biases, residuals and GELU as it writes, and needs no trials of Triton's tiles, which take minutes and may choose
    # others, with other rounding, at the next start. (MaxText and JAX-Toolbox set it for large models.)
    Option("gpu", "xla_gpu_enable_triton_gemm", False, "products by cuBLAS"),
    # Default: 64 MiB. XLA would merge small batches' q, k and v into one product, copy its result apart with the biases
    # that cuBLAS had added, and copy the three gradients together. (Read off a program compiled for an H100.)
    Option("gpu", "xla_gpu_dot_merger_threshold_mb", 0, "one product a matrix"),
    # Default: 16 MiB on v5p, 32 on v6e. Products then work on larger pieces of vector memory, of which these chips have
    # about 100 MiB. Google's own benchmarks of MaxText set 80 to 96 MiB; beyond 48, the MLPs of L/14 and B/16 gain no
    # more. Not on v5e: there SigLIP B/16's image tower gains what its text tower loses.
    Option(
        "tpu",
        "xla_tpu_scoped_vmem_limit_kib",
        48 * 1024,
        "48 MiB of vector memory for a product",
        kinds=("TPU v5", "TPU v6 lite"),
    ),
)


def step_options(devices: Sequence[Any], environ: Mapping[str, str] = os.environ) -> dict[str, bool | int]:
    """{name: value} of OPTIONS for a program on these devices; {} for processors, or where the user switched it off.

    Options that XLA_FLAGS or LIBTPU_INIT_ARGS name are the user's and left out.
    """
    platform = platform_of(devices)
    if platform not in SWITCHES or switched_off(platform, environ):
        return {}
    own, kind = named_flags(environ), devices[0].device_kind
    return {
        o.name: o.value
        for o in OPTIONS
        if o.platform == platform
        and o.name not in own
        and (len(devices) > 1 or not o.several)
        and (not o.kinds or kind in o.kinds)
    }


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


def describe_options(options: Mapping[str, bool | int], devices: Sequence[Any]) -> str:
    """What the options do, for one line: "GPU: collectives overlapped, ... (docs/gpu.md)"; "" for none."""
    what = ", ".join(dict.fromkeys(o.what for o in OPTIONS if o.name in options))
    platform = platform_of(devices)
    return f"{platform.upper()}: {what} ({PAGES[platform]})" if what else ""


def platform_of(devices: Sequence[Any]) -> str:
    """ "gpu", "tpu", "cpu" or another of JAX's platforms."""
    return {"cuda": "gpu"}.get(devices[0].platform, devices[0].platform)


def switched_off(platform: str, environ: Mapping[str, str]) -> bool:
    """Whether the user asks for XLA's and JAX's own defaults."""
    return environ.get(SWITCHES[platform], "").strip().lower() in ("off", "0", "false", "no", "none")


def named_flags(environ: Mapping[str, str]) -> set[str]:
    """The names in PLACES: {"xla_gpu_enable_triton_gemm"} for "--xla_gpu_enable_triton_gemm=false".

    XLA_FLAGS may be the name of a file that has them.
    """
    names = set()
    for place in PLACES:
        text = environ.get(place, "").strip()
        if text and not text.startswith("-"):
            with suppress(OSError):
                text = Path(text).read_text(encoding="utf-8", errors="replace")
        names |= set(re.findall(r"(?:^|\s)--(\w+)", text))
    return names
