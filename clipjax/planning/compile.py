"""Compiles an experiment's real train step for a topology, and reads memory, collectives and time off the program."""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections import defaultdict
from typing import Any, NamedTuple

import jax

from clipjax.config import ConfigError, ExperimentConfig
from clipjax.mesh import make_mesh
from clipjax.planning.chips import Chip
from clipjax.planning.flops import mfu, step_flops
from clipjax.planning.hlo import collectives, parse
from clipjax.planning.kernels import kernel_times
from clipjax.planning.parts import PARTS, part_of, purpose_of
from clipjax.planning.topology import Topology
from clipjax.runs.weights import load_teacher
from clipjax.training.check import check
from clipjax.training.state import TrainState, abstract_state
from clipjax.training.step import lower_step, step_comm


class OutOfMemory(NamedTuple):
    """The compiler gave up: the step needs more memory than a device has."""

    needed: float  # bytes per device, as the compiler says
    available: float
    message: str


def plan_step(config: ExperimentConfig, topology: Topology) -> dict[str, Any] | OutOfMemory:
    """What one training step costs each device of the topology; docs/plan.md explains every field.

    Returns OutOfMemory where the compiler gives up. Raises ConfigError, before compiling, where the experiment does not
    fit the mesh.
    """
    check(config, num_devices=len(topology.devices), process_count=1)
    mesh = make_mesh(config.mesh, topology.devices)
    state = abstract_state(config, mesh)
    started = time.perf_counter()
    try:
        compiled = lower_step(config, mesh, state, load_teacher(config, mesh, None, shapes_only=True)).compile()
    except jax.errors.JaxRuntimeError as error:
        if memory := out_of_memory(str(error)):
            return memory
        raise
    seconds = time.perf_counter() - started
    text = _text(compiled)
    program = parse(text)
    chip, devices = topology.chip, len(topology.devices)
    flops = step_flops(config)
    moves = [_collective(c, chip) for c in collectives(program, devices)]
    cycles: dict[str, float] = defaultdict(float)
    for instruction in program.executed():
        cycles[part_of(instruction.op_name)] += instruction.cycles * instruction.times
    kernels = kernel_times(program, chip) if chip else []
    for kernel in kernels:
        cycles[kernel["part"]] += (kernel["seconds"] or 0) * chip.clock * kernel["times"]
    memory, comm = _memory(compiled, state, chip), step_comm(config, mesh)
    return {
        "topology": topology.name,
        "devices": devices,
        "device_kind": topology.devices[0].device_kind,
        "mesh": dict(mesh.shape),
        "global_batch_size": config.global_batch_size,
        "loss": {"name": config.loss.name, "comm": comm, "auto": comm != config.loss.comm},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "compile_seconds": round(seconds, 1),
        "compiled_by": {name: _version(name) for name in ("jax", *(["libtpu"] if chip else []))},
        "memory": memory,
        "fits": None if chip is None else memory["total"] <= chip.hbm,
        "collectives": sorted(moves, key=lambda c: -c["bytes_received"] * c["times"]),
        "kernels": kernels,
        "flops": flops,
        "time": _time(cycles, flops, moves, memory, chip, devices) if chip else None,
        "loops_of_unknown_length": program.unknown_loops,
    }


def out_of_memory(message: str) -> OutOfMemory | None:
    """The memory that an error message says is needed and available; None for any other error."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    sizes = [float(n) * units[u] for n, u in re.findall(r"\(?([\d.]+)([KMGT]?)\)", message)]
    needed, available = (sizes + [float("nan")] * 2)[:2]
    return OutOfMemory(needed, available, message.splitlines()[0])


def _text(compiled: Any) -> str:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        ours, theirs = _version("jax"), _version("libtpu")
        raise ConfigError(
            f"The compiled program cannot be read: jax {ours} and libtpu {theirs} do not work together "
            f'({str(error).splitlines()[0][:100]}). Install versions that do: pip install "jax[tpu]=={ours}".'
        ) from None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _memory(compiled: Any, state: TrainState, chip: Chip | None) -> dict[str, float]:
    """Bytes per device, by purpose."""
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes
    written = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes if chip else 0
    params = _bytes_per_device(state.params)
    return {
        "params": params,
        "optimizer": _bytes_per_device(state) - params,
        "batch": held - _bytes_per_device(state),
        "gradients": params,
        "activations": max(analysis.temp_size_in_bytes - params, 0),
        "temporaries": analysis.temp_size_in_bytes,
        "total": held + written + analysis.temp_size_in_bytes + code,
        "available": chip.hbm if chip else None,
    }


def _bytes_per_device(tree: Any) -> int:
    return sum(leaf.dtype.itemsize * _size(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _collective(collective: Any, chip: Chip | None) -> dict[str, Any]:
    seconds = None
    if chip:
        # A permutation uses one link; other collectives use both directions of every dimension of the torus.
        links = 1 if collective.kind == "collective-permute" else 2 * chip.torus
        seconds = collective.bytes_received / (links * chip.ici_link)
    return {
        "kind": collective.kind,
        "part": purpose_of(collective.op_name),
        "bytes_in": collective.bytes_in,
        "bytes_out": collective.bytes_out,
        "bytes_received": int(collective.bytes_received),
        "group_size": collective.group_size,
        "times": collective.times,
        "seconds_at_least": seconds,
    }


def _time(
    cycles: dict[str, float], flops: dict[str, float], moves: list[dict], memory: dict, chip: Chip, devices: int
) -> dict[str, Any]:
    """Seconds per step: the compiler's estimate by part, and lower bounds that hold for every schedule."""
    parts = {part: cycles[part] / chip.clock for part in PARTS if cycles[part]}
    step = sum(parts.values())
    total = sum(flops.values())
    # The optimizer and instructions without a part have no model FLOPs.
    by_part = {p: mfu(flops[p], s, devices, chip.peak) for p, s in parts.items() if p in flops}
    state = memory["params"] + memory["optimizer"]
    return {
        "estimated_seconds": step or None,
        "estimated_seconds_by_part": parts,
        "estimated_mfu": mfu(total, step, devices, chip.peak) if step else None,
        "estimated_mfu_by_part": by_part,
        "at_least": {
            "matrix units": total / (devices * chip.peak),
            # The state is read and written, the batch is read, every temporary is written and read once.
            "memory": (2 * state + memory["batch"] + 2 * memory["temporaries"]) / chip.hbm_bandwidth,
            "network": sum(c["seconds_at_least"] * c["times"] for c in moves),
        },
    }
