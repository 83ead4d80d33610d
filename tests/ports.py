"""Ports for servers and coordinators whose address must be known before they listen."""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)  # below those that Linux gives to outgoing connections, any of which could take it first


def free_port() -> int:
    """A port of this machine at which nobody listens, and which the system gives to nobody unasked."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as attempt:
            try:
                attempt.bind(("", port))
            except OSError:
                continue
        return port
