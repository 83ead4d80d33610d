"""config.model.dtype="auto": bfloat16 where this machine multiplies it fast enough, else float32.

TPUs and GPUs with bfloat16 units say so themselves. Processors differ: some have matrix units for it (AMX), some only
convert, so it is measured once on each kind, in the products of a train step, and the result is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from clipjax.config import ModelConfig, require
from clipjax.files import write_text
from clipjax.machine.compilation_cache import cache_root, exchange, processor

ENOUGH = 2.0  # times as fast: less does not pay for what rounding to 8 bits may cost
ROWS, WIDTH, HIDDEN, ROUNDS = 1024, 512, 2048, 25
# Kinds of GPU before compute capability 8.0, for topologies that do not tell theirs.
WITHOUT = re.compile(r"\b(V100\w*|T4|P100|P40?|K80|M[46]0|TITAN \w+|GTX \d+\w*|RTX 20\d0|Quadro RTX)\b", re.IGNORECASE)


def choose_dtype(
    model: ModelConfig, devices: Sequence[jax.Device] | None = None, began: str = ""
) -> tuple[ModelConfig, str]:
    """(model with dtype "auto" replaced by what it computes in, a line that says why; "" where it was not "auto").

    devices: those that it will run on; None: this machine's. began: the dtype that the run to be continued has computed
    in so far, which it keeps. All processes of a run call it together, and do what the first one has measured.
    """
    if model.dtype != "auto":
        return model, ""
    device = (jax.devices() if devices is None else devices)[0]
    if began:
        dtype, why = began, "what the run has begun with"
    elif device.platform == "cpu":
        speedup = measured_by_first()
        dtype = "bfloat16" if speedup >= ENOUGH else "float32"
        why = f"{processor()[0]} multiplies bfloat16 {speedup:.2f} times as fast as float32; {ENOUGH:g} is enough"
    else:
        dtype = "bfloat16" if has_bfloat16(device) else "float32"
        why = f"{device.device_kind} has {'' if dtype == 'bfloat16' else 'no '}units for bfloat16"
    return dataclasses.replace(model, dtype=dtype), f"config.model.dtype=auto is {dtype}: {why}."


def check_dtype(model: ModelConfig, devices: Sequence[jax.Device] | None = None) -> None:
    """Raises ConfigError for bfloat16 on a GPU that has no units for it; model: as choose_dtype returns it."""
    device = (jax.devices() if devices is None else devices)[0]
    require(
        model.dtype != "bfloat16" or device.platform == "cpu" or has_bfloat16(device),
        f"config.model.dtype='bfloat16', but {device.device_kind} has no units for it and would be slower than in "
        "float32: use 'float32', or for a new run 'auto', which is float32 there.",
    )


def has_bfloat16(device: Any) -> bool:
    """Whether an accelerator multiplies bfloat16 itself: every TPU, and NVIDIA's GPUs from compute capability 8.0."""
    if device.platform == "tpu":
        return True
    capability = str(getattr(device, "compute_capability", ""))
    try:
        return float(capability) >= 8
    except ValueError:  # AMD's are named "gfx942"; a topology may have none
        return not WITHOUT.search(str(device.device_kind))


@functools.cache
def measured_by_first() -> float:
    """`measured_speedup` of process 0, on every process."""
    return float(exchange("bfloat16", repr(measured_speedup()) if jax.process_index() == 0 else "")[0])


def measured_speedup(measure: Callable[[], float] | None = None, environ: Mapping[str, str] = os.environ) -> float:
    """How many times as fast this processor multiplies bfloat16 as float32, kept in the user's cache.

    It is measured again for another processor or version of jaxlib. Where nothing can be kept, at each start.
    """
    name, key = processor()
    file = None
    with suppress(RuntimeError):  # no home
        file = cache_root(environ) / "bfloat16" / f"{key}-jaxlib-{jaxlib.__version__}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        speedup = float(json.loads(file.read_text("utf-8"))["speedup"])
        if 0 < speedup < 1000:
            return speedup
    speedup = (measure or measure_speedup)()
    with suppress(OSError, AttributeError):
        write_text(file, json.dumps({"processor": name, "speedup": round(speedup, 3)}) + "\n")
    return round(speedup, 3)


def measure_speedup() -> float:
    """Times a train step's products in both dtypes, in turns, in one to two seconds. The fastest run of each counts.

    Two of three products contract rows' ends (forward, and the gradient of the input), one contracts the rows (the
    gradient of the weights, whose left side the models lay out in rows for it). bfloat16 is multiplied into float32,
    as the models do.
    """
    from jax.experimental.layout import Layout, with_layout_constraint

    def forward(x: jax.Array, w: jax.Array, dy: jax.Array) -> jax.Array:
        return jnp.matmul(x, w, preferred_element_type=jnp.float32)

    def weight_gradient(x: jax.Array, w: jax.Array, dy: jax.Array) -> jax.Array:
        rows = with_layout_constraint(x.T, Layout((0, 1))) if x.dtype == jnp.bfloat16 else x.T
        return jnp.matmul(rows, dy, preferred_element_type=jnp.float32)

    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((ROWS, WIDTH), (WIDTH, HIDDEN), (ROWS, HIDDEN))]
    device = jax.local_devices(backend="cpu")[0]
    calls = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        inputs = [jax.device_put(jnp.asarray(array, dtype), device) for array in arrays]
        for function, weight in ((forward, 2), (weight_gradient, 1)):
            calls[dtype, weight] = functools.partial(jax.jit(function), *inputs)
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            if number:  # the first compiles
                seconds[name].append(time.perf_counter() - started)
    total = {
        dtype: sum(min(values) * name[1] for name, values in seconds.items() if name[0] == dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    return total[jnp.float32] / total[jnp.bfloat16]
