"""Estimates the time of clipjax's own TPU kernels, for which the compiler gives no estimate.

A TPU core starts one bundle of instructions per cycle, in the order of the compiler's schedule. A kernel's cycles are
therefore the bundles of one step times the number of steps, unless memory is slower. The compiler writes its schedules
only to a debugging folder, which must be named when it is loaded: each kernel is compiled once more, alone, in another
process.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from clipjax.models import flash_attention
from clipjax.models.flash_kernels import LANES
from clipjax.planning.chips import Chip
from clipjax.planning.hlo import Program
from clipjax.planning.parts import part_of
from clipjax.planning.topology import open_topology
from clipjax.processes import run_child

_NAME = re.compile(r"(flash_(?:forward|backward))_(\d+)x(\d+)x(\d+)x(\d+)(_causal)?(_masked)?")
_DTYPES = {"bf16": "bfloat16", "f32": "float32"}
_CHILD = "from clipjax.planning import kernels; kernels._child()"
_BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


class Kernel(NamedTuple):
    """A function of clipjax.models.flash_attention, and its arrays [batch, length, heads, d] on one device."""

    function: str
    batch: int
    length: int
    heads: int
    d: int
    causal: bool
    dtype: str
    masked: bool = False


def kernel_times(program: Program, chip: Chip) -> list[dict[str, Any]]:
    """For every kernel of a compiled program: its part, executions per step, schedule, and seconds per execution.

    seconds: None where the compiler wrote no schedule.
    """
    times: Counter[tuple[str, Kernel]] = Counter()
    for one in program.executed():
        if kernel := one.opcode == "custom-call" and _kernel(one.op_name, one.shapes):
            times[part_of(one.op_name), kernel] += one.times
    kernels = sorted({kernel for _, kernel in times})
    bundles = dict(zip(kernels, _bundles(kernels, chip), strict=True))
    return [_timed(kernel, part, count, bundles[kernel], chip) for (part, kernel), count in times.items()]


def _timed(kernel: Kernel, part: str, times: float, bundles: int | None, chip: Chip) -> dict[str, Any]:
    steps = flash_attention.kernel_steps(kernel.batch, kernel.length, kernel.heads, kernel.d)
    arrays = {"flash_forward": 4, "flash_backward": 7}[kernel.function]
    rows = kernel.batch * kernel.length
    size = arrays * rows * kernel.heads * kernel.d * jnp.dtype(kernel.dtype).itemsize
    size += 2 * rows * LANES if kernel.masked else 0  # a row of bfloat16 says whether a key is seen
    in_memory = size / chip.hbm_bandwidth
    seconds = None if bundles is None else max(bundles * math.ceil(steps / chip.cores) / chip.clock, in_memory)
    figures = {"part": part, "times": times, "steps": steps, "bundles": bundles, "seconds": seconds}
    return {**kernel._asdict(), **figures}


def _kernel(op_name: str, shapes: list[tuple[str, tuple[int, ...]]]) -> Kernel | None:
    name = _NAME.search(op_name)
    if not name:
        return None
    function, *shape, causal, masked = name.groups()
    return Kernel(function, *map(int, shape), bool(causal), _DTYPES[shapes[0][0]], bool(masked))


def _bundles(kernels: list[Kernel], chip: Chip) -> list[int | None]:
    if not kernels:
        return []
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={folder}"
        env = {**os.environ, "LIBTPU_INIT_ARGS": flags, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", _CHILD, chip.name, folder, json.dumps(kernels)]
        done = run_child(command, env)
    return json.loads(done.stdout) if done.returncode == 0 else [None] * len(kernels)


def _compile_and_read(chip: str, folder: Path, kernels: list[Kernel]) -> list[int | None]:
    """Bundles per step of each kernel, from the schedules that the compiler writes to folder."""
    device = open_topology(f"{chip}:2x2" if chip in ("v5e", "v6e") else f"{chip}:2x2x1").devices[0]
    result = []
    for kernel in kernels:
        shape = (kernel.batch, kernel.length, kernel.heads, kernel.d)
        array = jax.ShapeDtypeStruct(shape, kernel.dtype, sharding=SingleDeviceSharding(device))
        function = getattr(flash_attention, kernel.function)
        arrays = (array,) * (3 if kernel.function == "flash_forward" else 4)
        if kernel.masked:
            arrays += (jax.ShapeDtypeStruct(shape[:2], jnp.bool_, sharding=SingleDeviceSharding(device)),)
        jax.jit(lambda *args, f=function, causal=kernel.causal: f(*args, causal=causal)).lower(*arrays).compile()
        schedules = [path for path in folder.glob("*schedule-analysis_final_bundles.txt") if _NAME.search(path.name)]
        bundles = [_BUNDLES.search(path.read_text()) for path in schedules]
        result.append(int(bundles[0].group(1)) if len(bundles) == 1 and bundles[0] else None)
        for path in folder.iterdir():
            path.unlink()
    return result


def _child() -> None:
    """The other process: chip, folder and kernels from the command line, JSON to standard output."""
    chip, folder, kernels = sys.argv[1:]
    print(json.dumps(_compile_and_read(chip, Path(folder), [Kernel(*kernel) for kernel in json.loads(kernels)])))
