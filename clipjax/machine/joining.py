"""The processes of a run join: found by clipjax.machine.placement, met by rendezvous, connected by jax.distributed."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from clipjax.config import require
from clipjax.files import printable
from clipjax.machine.clusters import JOINED
from clipjax.machine.host import Host, StartError, split_address
from clipjax.machine.installed import version_of
from clipjax.machine.placement import BY_HAND, Placement, find_placement, proxies
from clipjax.machine.rendezvous import SECONDS, Facts, find_process_0, is_own_address, wait_for_others, wait_for_service

COMPARED = ("clipjax", "jax", "jaxlib", "python", "libtpu")  # what all processes must have alike


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: float | None = None,
    host: Host | None = None,
    heartbeat_seconds: int = 100,
) -> Placement:
    """Joins the processes of a run, as the flags and the environment tell; does nothing for a run of one process.

    Called before anything asks JAX for devices. Raises ConfigError for flags that cannot be meant, StartError where
    the environment is half set or contradicts itself, and where processes do not come within `seconds` (SECONDS).
    """
    seconds = SECONDS if seconds is None else seconds
    require(0 < seconds <= 7 * 24 * 3600, f"--start_timeout={seconds:g} must be a number of seconds above 0.")
    place = find_placement(host, coordinator_address, num_processes, process_id)
    for note in place.notes:
        say(note)
    if place.count == 1 or place.coordinator == JOINED:
        return place
    for line in different(meet(place, seconds)):
        say(f"warning: {line}")
    connect(place, heartbeat_seconds)
    return place


def meet(place: Placement, seconds: float, tell: Callable[[str], None] | None = None, **more: Any) -> list[Facts]:
    """What each process says of itself, on process 0, when all are there; [] on the others. Raises StartError."""
    tell, facts = tell or say, {**own_facts(), **more}
    try:
        if place.index:
            find_process_0(place.coordinator, place.count, place.index, facts, seconds, tell)
            return []
        for line in elsewhere(place):
            tell(line)
        return wait_for_others(place.coordinator, place.count, facts, seconds, tell)
    except StartError as error:
        slices = "MEGASCALE_NUM_SLICES" in place.read
        stale = " After a preemption, these may include lost slices: then recreate the job." * slices
        alone = " --num_processes=1 starts this process on its own."
        by = f" Found by {place.system}: {place.read}.{stale}{alone}" if place.system != BY_HAND else ""
        raise StartError(f"{error}{by}") from None


def connect(place: Placement, heartbeat_seconds: int) -> None:
    """jax.distributed.initialize with what was found, once all processes are there."""
    import jax

    if bypass_proxy(split_address(place.coordinator)[0]):
        with contextlib.suppress(AttributeError):  # a version of JAX that does not warn of proxies
            jax.config.update("jax_check_proxy_envs", False)
    if place.index:
        wait_for_service(place.coordinator)
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=list(place.local_devices) if place.local_devices else None,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


def elsewhere(place: Placement) -> list[str]:
    """A line where process 0 is told an address that is not its own, as after a preemption; [] where it fits."""
    host = split_address(place.coordinator)[0]
    if place.index or is_own_address(host) is not False:
        return []
    return [
        f"warning: process 0 is on {socket.gethostname()}, but the others look for it at {host}, which is no address "
        f"of this machine. If they do not find it, {place.system}'s variables may be left over from before a "
        "preemption."
    ]


def own_facts() -> dict[str, Any]:
    """What a process tells process 0 of itself."""
    versions = {name: version_of(name) for name in COMPARED if name != "python"}
    return {**versions, "python": platform.python_version(), "host": socket.gethostname()}


def different(facts: Sequence[Facts]) -> list[str]:
    """A line for each thing in which other processes differ from process 0 and should not."""
    lines = []
    for name in COMPARED:
        values: dict[str, list[int]] = {}
        for index, of in enumerate(facts):
            values.setdefault(str(of.get(name, "")), []).append(index)
        if len(values) > 1:
            told = "; ".join(f"{value or 'none'} on process {_some(of)}" for value, of in values.items())
            lines.append(f"the processes have different versions of {name}: {told}. Install the same on all hosts.")
    return lines


def _some(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def bypass_proxy(host: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Keeps JAX's connection to process 0 off a web proxy, which gRPC would ask; whether there is one."""
    if not proxies(environ):
        return False
    kept = environ.get("no_grpc_proxy") or environ.get("no_proxy") or ""
    environ["no_grpc_proxy"] = ",".join(filter(None, (kept, host)))
    return True


def say(line: str) -> None:
    """Prints a line before it is known which process is the first."""
    print(printable(line, lines=False), flush=True)
