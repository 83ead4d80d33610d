"""The devices of GPU hosts that are not there, from the compiler in JAX's CUDA plugin."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os

import jax

from clipjax.config import ConfigError, require
from clipjax.planning.gpu_cards import HOST_CARDS, Gpu, target_config

MOST_HOSTS = 4096  # that a plan is made for
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
INSTALL = 'pip install "clipjax[gpu-plan]", or pip install -e ".[gpu-plan]" in the project\'s folder'


# XLA chooses Triton's tiles by timing them on a card; without one, some products find no tile at all.
OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


def gpu_devices(name: str, card: Gpu, shape: str, hosts: int) -> tuple[list[jax.Device], Gpu, dict[str, bool | int]]:
    """The devices of `hosts` hosts with `shape` cards each, host after host; the card; options to compile with.

    Raises ConfigError for a shape that no host has, and where a part of the compiler is missing.
    """
    require(
        shape.isdigit(),
        f"--topology={name}: GPUs of a host have no shape; give their number, such as {card.name}:8, or "
        f"{card.name}:8*4 for four hosts of 8.",
    )
    count = int(shape)
    require(
        count > 0 and 0 < hosts <= MOST_HOSTS,
        f"--topology={name}: the number of cards of a host must be at least 1, that of hosts 1 to {MOST_HOSTS:,}.",
    )
    require(
        count <= HOST_CARDS,
        f"--topology={name}: a host has at most {HOST_CARDS} cards; for more, write {card.name}:{HOST_CARDS}*N for N "
        f"hosts{f', here {card.name}:{HOST_CARDS}*{count // HOST_CARDS}' if count % HOST_CARDS == 0 else ''}.",
    )
    _require_plugin(name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA would report that compiling takes minutes as an error
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(
            card.device_kind,
            platform="cuda",
            target_config=target_config(card, _cudnn_version(name)),
            topology=f"1x{hosts}x{count}",
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"--topology={name}: JAX's CUDA plugin cannot describe {card.name} ({str(error).splitlines()[0][:200]}). "
            f"Install the versions that clipjax asks for: {INSTALL}."
        ) from None
    return list(description.devices), card, dict(OPTIONS)


def _require_plugin(name: str) -> None:
    require(
        any(importlib.util.find_spec(plugin) for plugin in PLUGINS),
        f"--topology={name} needs JAX's CUDA plugin, which holds the GPU compiler (no GPU is needed): {INSTALL}.",
    )


def _cudnn_version(name: str) -> tuple[int, int]:
    """Major and minor version of the cuDNN that the plugin loads, which builds its graphs while XLA compiles."""
    for plugin in PLUGINS:
        with contextlib.suppress(ImportError):
            versions = importlib.import_module(f"{plugin}._versions")
            break
    else:
        raise ConfigError(f"--topology={name}: JAX's CUDA plugin is damaged. Install it again: {INSTALL}.")
    try:
        version = versions.cudnn_get_version()
    except Exception as error:  # the extension raises what it likes
        raise ConfigError(
            f"--topology={name}: the CUDA plugin finds no cuDNN ({str(error).splitlines()[0][:100]}), which builds its "
            f"part of the program while it is compiled. Install NVIDIA's libraries: {INSTALL}."
        ) from None
    return version // 10000, version // 100 % 100
