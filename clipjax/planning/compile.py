"""Compiles an experiment's real train step for a topology, and reads memory, collectives and time off the program."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from clipjax.config import ConfigError, ExperimentConfig
from clipjax.mesh import make_mesh, param_shardings
from clipjax.planning.chips import Chip
from clipjax.planning.estimate import Estimate
from clipjax.planning.flops import mfu, step_flops
from clipjax.planning.hlo import Collective, collectives, parse
from clipjax.planning.measured import measured_steps
from clipjax.planning.parts import PARTS, purpose_of
from clipjax.planning.slices import transfers
from clipjax.planning.targets import Target, target_of
from clipjax.planning.topology import Topology
from clipjax.runs.weights import load_teacher
from clipjax.training.check import check
from clipjax.training.cut import describe_planned
from clipjax.training.state import TrainState, abstract_state
from clipjax.training.step import compile_lowered, lower_step, step_comm
from clipjax.training.trainable import trained


class OutOfMemory(NamedTuple):
    """The compiler gave up: the step needs more memory than a device has."""

    needed: float  # bytes per device, as the compiler says
    available: float
    message: str


def check_plan(config: ExperimentConfig, topology: Topology) -> None:
    """Raises ConfigError, without compiling, where the experiment does not fit the mesh; evaluations are no part."""
    evaluation = dataclasses.replace(config.eval, batch_size=config.global_batch_size)
    check(dataclasses.replace(config, eval=evaluation), num_devices=len(topology.devices), process_count=1)


def plan_step(config: ExperimentConfig, topology: Topology) -> dict[str, Any] | OutOfMemory:
    """What one training step costs each device of the topology; docs/plan.md explains every field.

    Returns OutOfMemory where the compiler gives up. Raises ConfigError, before compiling, where the experiment does not
    fit the mesh. The batch of evaluations may be any: it is no part of the step.
    """
    check_plan(config, topology)
    mesh = make_mesh(config.mesh, topology.devices)
    state = abstract_state(config, mesh)
    chip, devices, target = topology.chip, len(topology.devices), target_of(topology.chip)
    started = time.perf_counter()
    try:
        lowered = lower_step(config, mesh, state, load_teacher(config, mesh, None, shapes_only=True))
        compiled, _ = compile_lowered(lowered, mesh, topology.options)
    except jax.errors.JaxRuntimeError as error:
        if memory := out_of_memory(str(error)):
            return memory
        raise _refused(error, topology, target) from error
    seconds = time.perf_counter() - started
    program = parse(_text(compiled, target))
    flops = step_flops(config)
    host_of = [device.process_index for device in mesh.devices.flat]
    slices = len({getattr(d, "slice_index", None) for d in topology.devices}) if hasattr(chip, "dcn") else 1
    moves = [_collective(c, chip, host_of) for c in collectives(program, devices // slices)]
    moves += [_between_slices(c, chip) for c in transfers(program, slices)]
    estimate = target.estimate(program, chip, host_of) if target.estimate else Estimate({})
    memory, comm = _memory(compiled, config, mesh, state, chip), step_comm(config, mesh)
    return {
        "topology": topology.name,
        "devices": devices,
        "device_kind": topology.devices[0].device_kind,
        "mesh": dict(mesh.shape),
        "global_batch_size": config.global_batch_size,
        "loss": {"name": config.loss.name, "comm": comm, "auto": comm != config.loss.comm},
        "texts": describe_planned(config),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "compile_seconds": round(seconds, 1),
        "compiled_by": _versions(target),
        "date": datetime.date.today().isoformat(),
        "memory": memory,
        "fits": None if chip is None else memory["total"] <= chip.hbm,
        "collectives": sorted(moves, key=lambda c: -c["bytes_received"] * c["times"]),
        "kernels": estimate.kernels,
        "flops": flops,
        "time": _time(estimate, flops, moves, memory, chip, devices) if chip else None,
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


def _refused(error: jax.errors.JaxRuntimeError, topology: Topology, target: Target) -> Exception:
    """A ConfigError of one line for the error of a compiler that comes as a package, such as one that is incomplete."""
    if not target.packages:
        return error
    versions = _versions(target)
    return ConfigError(
        f"--topology={topology.name}: the compiler gives up: {str(error).splitlines()[0][:300]} (with "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}). If a file or library is missing: "
        f"{target.install.format(**versions)}."
    )


def _text(compiled: Any, target: Target) -> str:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        versions = _versions(target)
        raise ConfigError(
            f"The compiled program cannot be read: {' and '.join(f'{n} {v}' for n, v in versions.items())} do not work "
            f"together ({str(error).splitlines()[0][:100]}). Install versions that do: "
            f"{target.install.format(**versions)}."
        ) from None


def _versions(target: Target) -> dict[str, str]:
    """{package: version} of JAX and of what compiles; of "a|b" the one that is installed."""
    versions = {}
    for either in ("jax", *target.packages):
        found = {name: _version(name) for name in either.split("|")}
        versions |= dict([next((pair for pair in found.items() if pair[1] != "missing"), min(found.items()))])
    return versions


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _memory(
    compiled: Any, config: ExperimentConfig, mesh: Mesh, state: TrainState, chip: Chip | None
) -> dict[str, float]:
    """Bytes per device, by purpose."""
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes
    written = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes if chip else 0
    params = _bytes_per_device(state.params)
    part = jax.eval_shape(functools.partial(trained, config), state.params)
    gradients = _bytes_per_device(jax.tree.map(_placed, part, param_shardings(part, mesh)))
    return {
        "params": params,
        "optimizer": _bytes_per_device(state) - params,
        "batch": held - _bytes_per_device(state),
        "gradients": gradients,
        "activations": max(analysis.temp_size_in_bytes - gradients, 0),
        "temporaries": analysis.temp_size_in_bytes,
        "total": held + written + analysis.temp_size_in_bytes + code,
        "available": chip.hbm if chip else None,
        "device": chip.memory if chip else None,
    }


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _bytes_per_device(tree: Any) -> int:
    return sum(leaf.dtype.itemsize * _size(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _collective(collective: Collective, chip: Chip | None, host_of: Sequence[int]) -> dict[str, Any]:
    spread = collective.spread(host_of)
    moved = collective.bytes_in, collective.bytes_received
    seconds = chip and chip.transfer_seconds(collective.kind, *moved, *spread)
    return _row(collective, collective.kind, spread[1], seconds)


def _between_slices(collective: Collective, chip: Chip) -> dict[str, Any]:
    """As _collective; the devices of a slice take part with their own parts, over the data-centre network."""
    kind, seconds = f"{collective.kind} between slices", collective.bytes_received / chip.dcn
    return _row(collective, kind, collective.group_size, seconds)


def _row(collective: Collective, kind: str, hosts: int, seconds_at_least: float | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "part": purpose_of(collective.op_name),
        "bytes_in": collective.bytes_in,
        "bytes_out": collective.bytes_out,
        "bytes_received": int(collective.bytes_received),
        "group_size": collective.group_size,
        "times": collective.times,
        "hosts": hosts,
        "seconds_at_least": seconds_at_least,
    }


def _time(
    estimate: Estimate, flops: dict[str, float], moves: list[dict], memory: dict, chip: Chip, devices: int
) -> dict[str, Any]:
    """Seconds per step: the estimate by part, and lower bounds that hold for every schedule."""
    parts = {part: estimate.seconds[part] for part in PARTS if estimate.seconds.get(part)}
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
        "measured": measured_steps(chip),
        "work": estimate.work,
        "transfers": estimate.transfers,
        "slowest": estimate.slowest,
        "factors": estimate.factors,
    }
