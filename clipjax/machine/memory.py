"""The most memory that a process has used so far, on its devices and of its host."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import jax


def peak_memory() -> dict[str, int]:
    """Bytes: {"host", and on accelerators "device" and, where the backend tells, "device_limit"}.

    device: the most that a program has used of one of this process's devices (memory_stats' peak_bytes_in_use);
    device_limit: what it may use of it. host: the largest resident set of this process, without its worker processes.
    """
    peaks = {"host": peak_resident()}
    for device in jax.local_devices():
        stats = (device.memory_stats() if device.platform != "cpu" else None) or {}
        if stats.get("peak_bytes_in_use", 0) > peaks.get("device", 0):
            peaks["device"] = int(stats["peak_bytes_in_use"])
            if stats.get("bytes_limit"):
                peaks["device_limit"] = int(stats["bytes_limit"])
    return peaks


def peak_resident() -> int:
    """Bytes of the largest resident set of this process.

    Linux counts it for a program in VmHWM; getrusage would name that of a larger process that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text("utf-8", "replace").split("\n"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def largest_of(peaks: list[dict[str, int]]) -> dict[str, int]:
    """The peaks of several processes as those of one: the largest host, and the fullest device with its limit."""
    found = {"host": max(peak.get("host", 0) for peak in peaks)}
    fullest = max(peaks, key=lambda peak: peak.get("device", 0))
    return found | {name: fullest[name] for name in ("device", "device_limit") if name in fullest}
