"""Which process of a run this one is: the claims of clipjax.machine.clusters, made into one answer.

The innermost system that says how many processes there are and which one this is wins. Claims that contradict it, or
that are made by half where no other is whole, are refused in one line, because a run that starts with them would wait
for processes that do not come.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from clipjax.config import require
from clipjax.machine.clusters import CLUSTERS, JOINED
from clipjax.machine.host import Claim, Cluster, Host, StartError, join_address, split_address

BY_HAND = "the command line"
FLAGS = "--coordinator_address, --num_processes and --process_id"


@dataclass(frozen=True)
class Placement:
    """Where this process is among those of its run."""

    system: str = ""  # a row of CLUSTERS, or BY_HAND; "": one process, on its own
    count: int = 1
    index: int = 0
    coordinator: str = ""  # host:port of process 0
    local_devices: tuple[int, ...] | None = None  # GPUs of this process; None: all that it sees
    read: str = ""  # the variables that said so
    notes: tuple[str, ...] = ()  # what the user should know of

    def describe(self) -> str:
        """In one line: "process 1 of 4, found by Slurm (SLURM_NTASKS=4, ...), process 0 at node001:61441"."""
        if self.count == 1:
            return "one process" + (f", as {self.system} says" if self.system else "; no system says otherwise")
        by = f"by {self.system}" + (f" ({self.read})" if self.read else "")
        where = "all have joined" if self.coordinator == JOINED else f"process 0 is at {self.coordinator}"
        return f"process {self.index} of {self.count}, found {by}; {where}"


def find_placement(
    host: Host | None = None,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Placement:
    """What the flags say, and the environment where they are None. --num_processes=1 alone: one process, whatever else.

    Raises ConfigError for flags that cannot be meant, and StartError for an environment that is half set or contradicts
    itself.
    """
    host = host or Host()
    given = (coordinator_address, num_processes, process_id)
    _check_flags(*given)
    if num_processes == 1:
        return Placement(BY_HAND)
    if None not in given:
        return Placement(BY_HAND, num_processes, process_id, _with_port(coordinator_address, "--coordinator_address"))
    place = _from_environment(host, coordinator_address)
    if given == (None, None, None):
        return place
    # Some flags are there: they replace what the environment says.
    require(place.count > 1, f"{FLAGS} go together, where no system says the rest; got {given}.")
    count = place.count if num_processes is None else num_processes
    index = place.index if process_id is None else process_id
    _check_flags(None, count, index)
    return replace(place, count=count, index=index)


def _check_flags(address: str | None, count: int | None, index: int | None) -> None:
    require(count is None or count >= 1, f"--num_processes={count} must be at least 1.")
    require(index is None or index >= 0, f"--process_id={index} must be at least 0.")
    require(
        count is None or index is None or index < count,
        f"--process_id={index} is beyond --num_processes={count}: processes are numbered from 0.",
    )
    if address is not None:
        _with_port(address, "--coordinator_address")


def _with_port(address: str, name: str) -> str:
    host, port = split_address(address)
    require(
        bool(host) and port is not None and 0 < port < 65536 and not re.search(r"[\s/]", host),
        f"{name}={address} must be host:port, such as host0:8482.",
    )
    return join_address(host, port)


def _from_environment(host: Host, address: str | None) -> Placement:
    claims = [(cluster, claim) for cluster in CLUSTERS if (claim := cluster.look(host))]
    notes = tuple(claim.note for _, claim in claims if claim.note)
    claims = [(cluster, claim) for cluster, claim in claims if _speaks(claim)]
    for cluster, claim in claims:
        if claim.count is not None and (claim.count < 1 or (claim.index or 0) >= claim.count):
            raise StartError(
                f"According to {cluster.name}, this is process {claim.index or 0} of {claim.count} "
                f"({_read(cluster, host)}): processes are numbered from 0. Some of these variables are most likely "
                "left over from another run; unset or correct them."
            )
    whole = [(cluster, claim) for cluster, claim in claims if claim.count and claim.index is not None]
    several = [(cluster, claim) for cluster, claim in whole if claim.count > 1]
    alone = {name for cluster, claim in whole if claim.count == 1 for name in cluster.inside}
    if not several:
        half = [(cluster, claim) for cluster, claim in claims if claim.count != 1 and cluster.name not in alone]
        if half:  # of several, the one that lacks least
            raise StartError(_half_set(*min(half, key=lambda pair: pair[1].missing.count(",")), host))
        return Placement(notes=notes)
    cluster, claim = several[0]
    if claim.address == JOINED:
        return Placement(cluster.name, claim.count, claim.index, JOINED)
    for other, others in claims:
        if other.name not in cluster.inside and _contradicts(claim, others):
            raise StartError(
                f"According to {cluster.name}, this is process {claim.index} of {claim.count} "
                f"({_read(cluster, host)}); according to {other.name}, it is not ({_read(other, host)}). Unset the "
                f"variables that are left over, or give {FLAGS}."
            )
    given = address and _with_port(address, "--coordinator_address") or host.get("JAX_COORDINATOR_ADDRESS")
    if given and split_address(given)[1] is None:
        given = host.address(split_address(given)[0])
    coordinator = given or claim.address
    if not coordinator:
        raise StartError(_half_set(cluster, claim, host))
    if not 0 < (split_address(coordinator)[1] or 0) < 65536:
        raise StartError(f"{coordinator} has no port between 1 and 65535 ({cluster.name}: {_read(cluster, host)}).")
    devices, note = share_of_gpus(host, claim.local)
    notes = tuple(filter(None, (note,)))
    return Placement(cluster.name, claim.count, claim.index, coordinator, devices, _read(cluster, host), notes)


def _speaks(claim: Claim) -> bool:
    return claim.count is not None or claim.index is not None or bool(claim.address or claim.missing)


def _contradicts(claim: Claim, other: Claim) -> bool:
    """Whether another system says something else; one that speaks of one process says nothing of the others."""
    pairs = ((claim.count, other.count), (claim.index, other.index))
    return other.count != 1 and any(theirs not in (None, ours) for ours, theirs in pairs)


def _half_set(cluster: Cluster, claim: Claim, host: Host) -> str:
    several = f"one of {claim.count} processes" if claim.count else "one of several processes"
    return (
        f"According to {cluster.name}, this is {several} ({_read(cluster, host)}), but {claim.missing} "
        f"{'are' if ',' in claim.missing else 'is'} missing. {claim.cure + ' ' if claim.cure else ''}"
        f"--num_processes=1 starts one process on its own; {FLAGS} start several by hand."
    )


def _read(cluster: Cluster, host: Host) -> str:
    """The variables of a system that are set, as NAME=value."""
    return ", ".join(f"{name}={value[:60]}" for name in cluster.reads if (value := " ".join(host.get(name).split())))


def share_of_gpus(host: Host, local: tuple[int, int] | None) -> tuple[tuple[int, ...] | None, str]:
    """(the GPUs of this process among those that it sees, a note). None: all of them.

    Where a host has several processes that see the same GPUs, each takes its part. A scheduler that shows each process
    its own GPU has done so already, and one process takes all; JAX itself would take one GPU in both cases.
    """
    if local is None or local[1] < 2 or host.get("JAX_LOCAL_DEVICE_IDS"):
        return None, ""
    seen = count_gpus(host)
    index, processes = local
    if seen < 2:
        return None, ""
    if seen < processes:
        return None, f"{processes} processes of this host share {seen} GPUs: each will want all of their memory."
    each = seen // processes
    rest = seen - each * processes
    note = f"{rest} of this host's {seen} GPUs stay idle: {processes} processes take {each} each." if rest else ""
    return tuple(range(index * each, (index + 1) * each)), note


def count_gpus(host: Host) -> int:
    """NVIDIA GPUs that this process will see, without asking the driver."""
    platforms = host.get("JAX_PLATFORMS").lower()
    if platforms and not re.search(r"cuda|gpu", platforms):
        return 0
    if (visible := host.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1", "NoDevFiles")])
    return sum(1 for file in host.device_files.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name))


def proxies(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The proxy variables that gRPC, and with it JAX's connection between processes, would obey."""
    return [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if environ.get(name)]
