"""Where the time of a run went, as a table: at the end of training and in the report."""

from __future__ import annotations

from typing import NamedTuple

from clipjax.processes import duration
from clipjax.runs.goodput import Goodput

LABELS = {
    "step": "steps",
    "data_wait": "waiting for data",
    "start": "start",
    "compile": "compiling",
    "restore": "restoring",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "other": "reports, profiles",
    "lost": "lost steps",
    "down": "down",
}
GIB = 1 << 30


class Row(NamedTuple):
    """A row of the table."""

    name: str  # of clipjax.runs.goodput.ROWS
    label: str
    time: str
    share: float  # of the whole time, 0 to 1
    remark: str


def goodput_rows(found: Goodput) -> list[Row]:
    """The rows of the table that have any time; that of the steps is always there."""
    restarts = found.starts - 1
    remarks = {
        "step": "goodput",
        "lost": f"{found.lost_steps:,} {'step' if found.lost_steps == 1 else 'steps'} made again after a restart",
        "down": f"before {restarts} {'restart' if restarts == 1 else 'restarts'}",
    }
    return [
        Row(name, label, seconds_text(found.seconds[name]), share_of(found, name), remarks.get(name, ""))
        for name, label in LABELS.items()
        if found.seconds[name] or name == "step"
    ]


def describe_goodput(found: Goodput | None) -> str:
    """The table in lines; "" for a run without accounts."""
    if found is None:
        return ""
    lines = [goodput_title(found)]
    for row in goodput_rows(found):
        lines.append(f"  {row.label:<17} {row.time:>8} {row.share:>6.1%}  {row.remark}".rstrip())
    return "\n".join([*lines, *([f"  {memory}"] if (memory := memory_text(found.memory)) else [])])


def goodput_title(found: Goodput) -> str:
    """'Where the time went: 3h 12m in 2 starts'"""
    since = f" since step {found.first_step:,}" if found.first_step else ""
    return f"Where the time went: {seconds_text(found.wall)} in {starts_text(found)}{since}"


def starts_text(found: Goodput) -> str:
    """'1 start', '3 starts'"""
    return f"{found.starts:,} {'start' if found.starts == 1 else 'starts'}"


def memory_text(memory: dict[str, int]) -> str:
    """'peak memory: 63.1 of 95.7 GiB on a device, 4.2 GiB on a host', the largest of all; "" where it is not known."""
    parts = []
    if "device" in memory:
        limit = f" of {memory['device_limit'] / GIB:.1f}" if "device_limit" in memory else ""
        parts.append(f"{memory['device'] / GIB:.1f}{limit} GiB on a device")
    if "host" in memory:
        parts.append(f"{memory['host'] / GIB:.1f} GiB on a host")
    return f"peak memory: {', '.join(parts)}" if parts else ""


def share_of(found: Goodput, name: str) -> float:
    """A row's share of the whole time, 0 to 1."""
    return found.seconds[name] / found.wall if found.wall else 0.0


def seconds_text(seconds: float) -> str:
    """As duration, with a decimal below ten seconds: '0.4s'."""
    return f"{seconds:.1f}s" if seconds < 9.95 else duration(seconds)
