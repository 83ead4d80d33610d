"""Processes meet at process 0's address before JAX connects them, so that whoever is missing is named.

JAX's own connection waits for as long, but ends a process whose peers do not come by aborting it, with a stack of C++
and without a name. Here process 0 listens at the very address and port that JAX will use; the others connect, each says
who it is, and when all are there, process 0 tells them to go on, and makes room for JAX's service.
"""

from __future__ import annotations

import contextlib
import json
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clipjax.machine.host import PORT, StartError, split_address

SECONDS = 300.0  # that processes wait for each other; JAX's default as well
TELL_SECONDS = 30.0  # before a process says what it waits for
TRY_SECONDS = 5.0  # for one attempt to connect
PAUSE = 0.5  # between two attempts
LONGEST = 1 << 16  # bytes of a message
Facts = Mapping[str, Any]

REFUSED = "nothing listens there: process 0 has not been started, has ended, or is on another host"
SILENT = "no answer: the host is off, or a firewall drops what is sent to this port"
OTHER = "something else listens there, perhaps an earlier run that has not ended"
PORT_TRAP = (
    "JAX 0.8.1 moved the port on Cloud TPU from 8476 to 8482, which the firewall rule of some pods (v6e) keeps closed: "
    "set JAX_COORDINATOR_PORT=8476 on all hosts, or open the port."
)
OTHER_PORT = "A firewall may keep the port closed: JAX_COORDINATOR_PORT, the same on all hosts, chooses another."


def wait_for_others(
    address: str, count: int, facts: Facts, seconds: float = SECONDS, tell: Callable[[str], None] = print
) -> list[Facts]:
    """Process 0's part: what each process says of itself, in process order, its own `facts` first.

    tell: called once with a line, when somebody is still missing after TELL_SECONDS. Raises StartError, which names
    who is missing after `seconds`, or that the port is taken.
    """
    host, port = split_address(address)
    started, told = time.monotonic(), False
    with contextlib.closing(_listen(port or 0)) as listener, contextlib.closing(_Guests(listener, count)) as guests:
        while missing := guests.missing():
            waited = time.monotonic() - started
            if waited > seconds:
                guests.send_all({"error": f"Of {count} processes, {missing} did not come within {seconds:.0f} s."})
                raise StartError(
                    f"Of {count} processes, {missing} did not come to {address} within {seconds:.0f} s"
                    f"{'; ' + guests.remark if guests.remark else ''}. See whether they were started, and what they "
                    f"print. {_port_advice(address)} --start_timeout waits longer."
                )
            if waited > TELL_SECONDS and not told:
                told = True
                tell(f"Waiting for other processes at {address}. Missing of {count}: {missing}")
            guests.look(min(0.2, seconds))
        listener.close()  # JAX's service listens at this port next
        guests.send_all({"go": True})
        return [facts, *(guests.facts[index] for index in range(1, count))]


def find_process_0(
    address: str,
    count: int,
    index: int,
    facts: Facts,
    seconds: float = SECONDS,
    tell: Callable[[str], None] = print,
) -> None:
    """Another process's part: returns when all processes are there.

    Raises StartError with the reason why process 0 could not be reached within `seconds`, or with what it refuses.
    """
    deadline, told, reason = time.monotonic() + seconds, False, ""
    tell_at = time.monotonic() + TELL_SECONDS
    while (left := deadline - time.monotonic()) > 0 or not reason:
        try:
            # Once connected, process 0 says when it has waited long enough; it may have been started later.
            if _meet(address, {**facts, "process": index, "of": count}, max(left, PAUSE), seconds):
                return
            reason = OTHER
        except (OSError, UnicodeError) as error:
            reason = _reason(address, error)
        if time.monotonic() > tell_at and not told:
            told = True
            tell(f"Process {index} waits for process 0 at {address}: {reason}")
        time.sleep(min(PAUSE, max(0.0, deadline - time.monotonic())))
    raise StartError(
        f"Process {index} of {count} could not meet process 0 at {address} within {seconds:.0f} s: {reason}. "
        f"{_port_advice(address) + ' ' if reason == SILENT else ''}--start_timeout waits longer."
    )


def wait_for_service(address: str, seconds: float = 30.0) -> None:
    """Returns when something listens at the address, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, UnicodeError), socket.create_connection(_pair(address), TRY_SECONDS):
            return
        time.sleep(0.05)


def is_own_address(host: str) -> bool | None:
    """Whether a host name or address is one of this machine's; None where it is not known to the resolver."""
    try:
        found = {(family, place[0]) for family, *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return None
    for family, place in found:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.bind((place, 0))
            return True
    return False


class _Guests:
    """The processes that have come to process 0, and are still there."""

    def __init__(self, listener: socket.socket, count: int):
        self.listener, self.count = listener, count
        self.facts: dict[int, Facts] = {}
        self.here: dict[int, socket.socket] = {}
        self.unread: dict[socket.socket, bytes] = {}
        self.remark = ""  # about a process that was refused
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        with contextlib.suppress(OSError, ValueError):  # a file for each process
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 1024)), hard))

    def missing(self) -> str:
        absent = [index for index in range(1, self.count) if index not in self.here]
        more = f" and {len(absent) - 20} more" if len(absent) > 20 else ""
        return ", ".join(map(str, absent[:20])) + more

    def look(self, seconds: float) -> None:
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.listener:
                with contextlib.suppress(OSError):
                    guest, _ = self.listener.accept()
                    guest.setblocking(False)
                    self.unread[guest] = b""
                    self.selector.register(guest, selectors.EVENT_READ)
            else:
                self._read(key.fileobj)

    def _read(self, guest: socket.socket) -> None:
        try:
            data = guest.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.unread[guest] += data
        if not data or len(self.unread[guest]) > LONGEST:
            self._leave(guest)
        elif b"\n" in self.unread[guest] and guest not in self.here.values():
            refusal = self._welcome(guest, self.unread[guest])
            _send(guest, {"error": refusal} if refusal else {"wait": True})
            if refusal:
                self.remark = refusal.rstrip(".")
                self._leave(guest)

    def _welcome(self, guest: socket.socket, line: bytes) -> str:
        """Why this process is refused; "" for one that may stay."""
        try:
            said = json.loads(line)
            index, of = int(said["process"]), int(said["of"])
        except (ValueError, KeyError, TypeError):
            return "something other than a clipjax process has connected"
        place = f"process {index} on {str(said.get('host'))[:80]}"
        if of != self.count:
            return f"{place} was told that there are {of} processes, and process 0 that there are {self.count}."
        if not 0 < index < self.count:
            return f"{place}: there are only {self.count} processes, and process 0 is this one."
        if index in self.here:
            other = str(self.facts[index].get("host"))[:80]
            return f"{place} came twice, the first time from {other}: two processes have this number, or two runs meet."
        if isinstance(said.get("time"), float):
            said["offset"] = said["time"] - time.time()  # of its clock from process 0's
        self.here[index], self.facts[index] = guest, said
        return ""

    def _leave(self, guest: socket.socket) -> None:
        self.selector.unregister(guest)
        guest.close()
        self.unread.pop(guest, None)
        self.here = {index: other for index, other in self.here.items() if other is not guest}

    def send_all(self, message: Mapping[str, Any]) -> None:
        for guest in self.here.values():
            _send(guest, message)

    def close(self) -> None:
        for guest in list(self.unread):
            self._leave(guest)
        self.selector.close()


def _meet(address: str, hello: Mapping[str, Any], left: float, seconds: float) -> bool:
    """One visit to process 0: True when it says go, False where something else answers. Raises OSError, StartError."""
    with socket.create_connection(_pair(address), timeout=min(TRY_SECONDS, left)) as server:
        server.sendall(json.dumps({**hello, "time": time.time()}).encode() + b"\n")
        try:
            for line in _lines(server):
                answer = json.loads(line)
                if "error" in answer:
                    raise StartError(str(answer["error"]))
                if "go" in answer:
                    return True
                # Process 0 is there. It says when it has waited long enough, and may have been started later.
                server.settimeout(max(left, seconds) + 2 * TRY_SECONDS)
        except (ValueError, TypeError, TimeoutError):
            return False  # not process 0's words
        return False


def _lines(server: socket.socket) -> Iterator[bytes]:
    data = b""
    while len(data) < LONGEST and (new := server.recv(4096)):
        *lines, data = (data + new).split(b"\n")
        yield from lines
    if data:
        yield data


def _send(guest: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        guest.settimeout(TRY_SECONDS)
        guest.sendall(json.dumps(message).encode() + b"\n")
        guest.setblocking(False)


def _listen(port: int) -> socket.socket:
    """Where JAX's service will listen: at the port on all of this machine's addresses. Raises StartError."""
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):
                return _bound(socket.AF_INET6, port)
        return _bound(socket.AF_INET, port)
    except OSError as error:
        raise StartError(
            f"Process 0 cannot listen at port {port}: {error.strerror}. An earlier run that has not ended may have it; "
            "end it, or set JAX_COORDINATOR_PORT to another port on all hosts."
        ) from error


def _bound(family: int, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is closed, not what still listens
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", port))
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    return listener


def _port_advice(address: str) -> str:
    return PORT_TRAP if split_address(address)[1] == PORT else OTHER_PORT


def _pair(address: str) -> tuple[str, int]:
    host, port = split_address(address)
    return host, port or 0


def _reason(address: str, error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the name {split_address(address)[0]} is not known here ({getattr(error, 'strerror', None) or error})"
    if isinstance(error, TimeoutError):
        return SILENT
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return OTHER
    return (error.strerror or str(error)).lower()
