"""What the rows of clipjax.machine.clusters look at, and what each of them says."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

PORT = 8482  # JAX's own since 0.8.1; 8476 before
PORT_VARIABLE = "JAX_COORDINATOR_PORT"
METADATA_SECONDS, METADATA_TRIES = 3.0, 3


class StartError(RuntimeError):
    """The processes of a run cannot find each other; the message names the variables or the address, and the cure."""


def metadata_of(key: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """An attribute of a Google Cloud VM; None where there is no such attribute, or no metadata server."""
    server = environ.get("GCE_METADATA_IP") or environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    for _ in range(METADATA_TRIES):
        with suppress(OSError):
            request = Request(url, headers={"Metadata-Flavor": "Google"})
            with build_opener(ProxyHandler({})).open(request, timeout=METADATA_SECONDS) as answer:
                return answer.read().decode()
    return None


def has_tpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a chip of Google's is on the PCI bus that is no disk and no network card, which its VMs have too."""
    for vendor in devices.glob("*/vendor"):
        with suppress(OSError):
            other = (vendor.parent / "class").read_text().startswith(("0x01", "0x02"))
            if vendor.read_text().strip() == "0x1ae0" and not other:
                return True
    return False


def joined() -> tuple[int, int] | None:
    """(processes, this one's number) where jax.distributed has been initialised in this process; None elsewhere."""
    jax = sys.modules.get("jax")
    return (jax.process_count(), jax.process_index()) if jax and jax.distributed.is_initialized() else None


@dataclass(frozen=True)
class Host:
    """What the rows look at; tests give each part another value."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    metadata: Callable[[str], str | None] = metadata_of
    has_tpu: Callable[[], bool] = has_tpu
    full_name: Callable[[], str] = socket.getfqdn
    device_files: Path = Path("/dev")
    joined: Callable[[], tuple[int, int] | None] = joined

    def get(self, *names: str) -> str:
        """The first of these variables that is set and not empty; "" for none."""
        return next((value for name in names if (value := self.environ.get(name, "").strip())), "")

    def number(self, *names: str) -> int | None:
        """The same as a whole number of 0 or more; None for none. Raises StartError for anything else."""
        for name in names:
            if value := self.get(name):
                if not re.fullmatch(r"\d{1,9}", value):
                    raise StartError(f"{name}={value[:80]!r} is not a whole number of 0 or more.")
                return int(value)
        return None

    def address(self, host: str, port: int = PORT) -> str:
        """host:port of process 0, with JAX_COORDINATOR_PORT instead of `port` where that is set."""
        return join_address(host, self.number(PORT_VARIABLE) or port)


@dataclass(frozen=True)
class Claim:
    """What a system's variables say. None or "": they do not say it."""

    count: int | None = None  # of processes
    index: int | None = None  # of this one, from 0
    address: str = ""  # host:port of process 0
    local: tuple[int, int] | None = None  # (number of this process on its host, processes on its host)
    missing: str = ""  # what the system's variables lack
    cure: str = ""
    note: str = ""  # to tell where no system is found; a claim of a note alone says nothing else


class Cluster(NamedTuple):
    """A row of the table."""

    name: str
    reads: tuple[str, ...]  # environment variables, for messages
    look: Callable[[Host], Claim | None]
    inside: tuple[str, ...] = ()  # systems that may start this one, whose own numbers then count something else


def split_address(address: str) -> tuple[str, int | None]:
    """("host", port) of "host:port" or "[::1]:port"; the port is None where there is none."""
    host, colon, port = address.strip().rpartition(":")
    if not colon or not port.isdigit() or host.count(":") and not host.endswith("]"):
        return address.strip().strip("[]"), None
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The reverse of split_address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_place(index: int | None, count: int | None) -> tuple[int, int] | None:
    return None if index is None or count is None or index >= count else (index, count)


def absent(needed: Mapping[str, object]) -> str:
    """The names whose value is not there, for a message."""
    return ", ".join(name for name, value in needed.items() if value is None or value == "" or value == [])
