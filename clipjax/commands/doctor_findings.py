"""A line of what `clipjax doctor` reports, and what its checks share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipjax.machine.host import Host
from clipjax.machine.placement import Placement

OK, WARNING, ERROR = "ok", "warning", "error"
PROBE = ".clipjax-doctor-"  # how the names of files begin that a check leaves for a moment


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    check: str
    status: str  # OK, WARNING or ERROR
    found: str
    do: str = ""  # what to do about it

    def line(self) -> str:
        """'warning  huge pages: never. Do: ...'"""
        return f"{self.status:7}  {self.check}: {self.found}" + (f" -> {self.do}" if self.do else "")

    def as_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Doctor:
    """What the flags chose, and what one check learns for another."""

    config: Any = None  # ExperimentConfig; None without --config
    workdir: str = ""
    flags: tuple[str | None, int | None, int | None] = (None, None, None)
    seconds: float = 60.0  # that a check may take
    start_timeout: float = 30.0
    host: Host = Host()
    place: Placement | None = None
    devices: dict[str, Any] | None = None


def existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
