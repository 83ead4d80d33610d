"""What is installed, and whether it fits: packages by what they require of each other, and NVIDIA's driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

# The oldest driver for each CUDA of JAX's plugins: NVIDIA's release notes, "CUDA Toolkit and Minimum Required Driver".
DRIVERS = {"jax-cuda12-plugin": (525, "CUDA 12"), "jax-cuda13-plugin": (580, "CUDA 13")}
SHOWN = ("clipjax", "jax", "jaxlib", "libtpu", *DRIVERS)


def version_of(package: str) -> str:
    """A package's version; "" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def misfits(
    packages: Sequence[str] = ("clipjax", "jax", "jaxlib", *DRIVERS),
    requires: Callable[[str], list[str] | None] = metadata.requires,
    version: Callable[[str], str] = version_of,
) -> Iterator[str]:
    """A line for each requirement of these packages that what is installed does not meet.

    A package of an extra counts where it is installed: jax[tpu] names the libtpu that fits this JAX.
    """
    # matplotlib brings packaging along.
    from packaging.requirements import InvalidRequirement, Requirement

    told = set()
    for package in packages:
        needs = []
        with suppress(metadata.PackageNotFoundError):
            needs = requires(package) or []
        for text in needs:
            try:
                need = Requirement(text)
            except InvalidRequirement:
                continue
            extra = need.marker is not None and "extra" in str(need.marker)
            if extra and ("minimum" in text or not _of_devices(need.name)):
                continue
            if need.marker is not None and not extra and not need.marker.evaluate():
                continue
            found = version(need.name)
            if not found and not extra:
                line = f"{package} {version(package)} needs {need.name}{need.specifier}, which is not installed"
            elif found and not need.specifier.contains(found, prereleases=True):
                line = f"{package} {version(package)} needs {need.name}{need.specifier}, not {found}"
            else:
                continue
            if line not in told:
                told.add(line)
                yield line


def _of_devices(name: str) -> bool:
    """Whether a package of one of jax's extras is what JAX runs a kind of device with."""
    return name == "libtpu" or re.fullmatch(r"jax-.*-plugin", name) is not None


def nvidia_driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of the kernel's driver, "535.104.05"; "" where there is none."""
    with suppress(OSError, UnicodeDecodeError):
        if found := re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.[\d.]+)", file.read_text()):
            return found[1]
    return ""


def driver_too_old(driver: str, version: Callable[[str], str] = version_of) -> str:
    """What an installed CUDA plugin needs that this driver is not; "" where it fits or nothing is known."""
    major = int(driver.split(".")[0]) if driver else 0
    for package, (least, cuda) in DRIVERS.items():
        if major and version(package) and major < least:
            return f"{package} {version(package)} is for {cuda}, which needs driver {least} or newer"
    return ""
