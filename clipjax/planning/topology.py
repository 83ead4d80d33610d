"""--topology: the devices to compile for, whether or not they are present."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax

from clipjax.config import ConfigError, require
from clipjax.planning.chips import CHIPS, Chip, chip_of_kind, get_chip
from clipjax.planning.gpu_cards import Gpu
from clipjax.planning.gpu_topology import gpu_devices
from clipjax.planning.tpu_chips import Tpu

MOST_CPUS = 1024  # that a plan is made for: each takes threads of this process


class Topology(NamedTuple):
    """Devices that a program can be compiled for."""

    name: str
    devices: list[jax.Device]
    chip: Chip | None  # None where no figures are known, as for CPUs
    options: Mapping[str, bool | int] = MappingProxyType({})  # XLA's, for compiling without the devices


def open_topology(name: str) -> Topology:
    """The devices of "v5e:16x16" (a TPU slice), "h100:8" (GPUs of one host), "cpu:8" or "local".

    "v5e:16x16*2" is two slices on a data-centre network, "h100:8*4" four hosts. A TPU slice needs the libtpu package
    and no TPU, GPUs need JAX's CUDA plugin and no GPU. "cpu:8" needs a process started with 8 host devices; see
    host_devices_flag. Raises ConfigError for an unknown chip, an impossible shape, a missing compiler or too few
    devices.
    """
    if name == "local":
        chip = chip_of_kind(jax.devices()[0].device_kind)
        return Topology(name, jax.devices(), chip and chip.in_this_environment())
    match = re.fullmatch(r"([A-Za-z0-9]+):(\d+(?:x\d+){0,2})(?:\*(\d+))?", name)
    require(
        match is not None,
        f"--topology={name} is not understood. Expected CHIP:AxB or CHIP:AxBxC, such as v5e:16x16 or v5p:8x8x4, with "
        "*2 after it for two slices; GPU:N, such as h100:8, with *4 after it for four hosts; cpu:8; or local for the "
        "devices present. Chips: " + ", ".join(CHIPS) + ".",
    )
    kind, shape, slices = match.groups()
    if kind == "cpu":
        return Topology(name, _cpu_devices(shape), None)
    chip = get_chip(kind).in_this_environment()
    return Topology(name, *_OPENERS[type(chip)](name, chip, shape, 1 if slices is None else int(slices)))


def host_devices_flag(name: str) -> str | None:
    """The XLA flag that --topology=cpu:N needs before JAX starts; None for others, also for an N that is refused."""
    match = re.fullmatch(r"cpu:(\d+)", name)
    return f"--xla_force_host_platform_device_count={match.group(1)}" if match and _is_count(match.group(1)) else None


def _is_count(shape: str) -> bool:
    return shape.isdecimal() and len(shape) < 10 and 0 < int(shape) <= MOST_CPUS


def _cpu_devices(shape: str) -> list[jax.Device]:
    require(
        _is_count(shape),
        f"--topology=cpu:{shape}: expected a number of devices from 1 to {MOST_CPUS:,}, such as cpu:8.",
    )
    devices = jax.devices("cpu")
    require(
        len(devices) >= int(shape),
        f"--topology=cpu:{shape}: this process has {len(devices)} CPU device(s). Start it with "
        f"XLA_FLAGS={host_devices_flag(f'cpu:{shape}')}.",
    )
    return devices[: int(shape)]


def _tpu_devices(name: str, chip: Tpu, shape: str, slices: int) -> tuple[list[jax.Device], Tpu, dict]:
    require(
        importlib.util.find_spec("libtpu") is not None,
        f"--topology={name} needs the libtpu package, which holds the TPU compiler (no TPU is needed): "
        'pip install "clipjax[tpu]", or pip install -e ".[tpu]" in the project\'s folder.',
    )
    # libtpu looks these up on a TPU machine; on any other it would wait for an answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.name}-1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict = dict(chip.topology_options)
    if all(int(side) == 1 for side in shape.split("x")):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        description = topologies.get_topology_desc(f"{chip.name}:{shape}", platform="tpu", **options)
        return list(description.devices), chip, {}
    except jax.errors.JaxRuntimeError as error:
        version, reason = importlib.metadata.version("libtpu"), str(error).splitlines()[0]
        example = f"{chip.name}:{'x'.join(['4'] * chip.torus)}"
        raise ConfigError(
            f"--topology={name}: libtpu {version} refuses it: {reason} A {chip.name} slice has {chip.torus} "
            f"dimensions, such as {example}."
        ) from None


# How the devices of a kind of chip are opened: (name, chip, shape, slices or hosts) -> (devices, chip, options).
_OPENERS = {Tpu: _tpu_devices, Gpu: gpu_devices}
