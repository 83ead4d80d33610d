"""What an estimator says about the time of a compiled step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """Seconds of one step by part, and what they consist of; lists and dicts as a plan's JSON has them."""

    seconds: dict[str, float]
    kernels: list[dict[str, Any]] = field(default_factory=list)  # clipjax's own, of which the compiler knows no time
    work: list[dict[str, Any]] = field(default_factory=list)  # by kind of kernel: times, flops, bytes, seconds
    transfers: dict[str, float] | None = None  # seconds of collectives, and of those what is waited for
    slowest: list[dict[str, Any]] = field(default_factory=list)  # instructions
    factors: dict[str, float] = field(default_factory=dict)  # achieved shares of published rates that it assumes
