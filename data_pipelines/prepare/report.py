"""What became of every example: report.json, and a page with the same content."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from clipjax.files import write_text
from clipjax.report.page import environment
from data_pipelines.command import PipelineError
from data_pipelines.prepare.steps import STEPS

REPORT, PAGE = "report.json", "report.html"


def account(summary: dict[str, Any]) -> dict[str, Any]:
    """{"read", "steps": [{"step", "in", "out", "dropped": {cause: {count, samples}}, "noted": ...}], "splits"}.

    Raises PipelineError where the numbers do not add up, because examples were then lost or doubled on the way.
    """
    events: dict[str, dict[bool, dict[str, Any]]] = defaultdict(lambda: {True: {}, False: {}})
    for event in summary["events"]:
        events[event["step"]][event["dropped"]][event["cause"]] = {
            "count": event["count"],
            "samples": [{"key": key, "text": text} for key, text in event["samples"]],
        }
    steps, left = [], summary["read"]
    for name in ("read", *STEPS):
        if name not in events:
            continue
        dropped = sum(cause["count"] for cause in events[name][True].values())
        steps.append({"step": name, "in": left, "out": left - dropped})
        steps[-1] |= {"dropped": events[name][True], "noted": events[name][False]}
        left -= dropped
    splits: dict[str, dict[str, int]] = {}
    for shard in summary["shards"]:
        entry = splits.setdefault(shard["split"], {"records": 0, "shards": 0, "bytes": 0})
        entry["records"] += shard["records"]
        entry["shards"] += 1
        entry["bytes"] += shard["bytes"]
    written = sum(entry["records"] for entry in splits.values())
    if written != left:
        raise PipelineError(
            f"{summary['read']:,} examples were read and {summary['read'] - left:,} left out, but {written:,} records "
            "written: something went wrong on the way, and nothing was published."
        )
    return {"read": summary["read"], "written": written, "steps": steps, "splits": splits}


def write_report(folder: Path, name: str, accounted: dict[str, Any], options: dict[str, Any]) -> None:
    """Writes report.json and report.html. accounted: from `account`."""
    content = {"name": name, **accounted, "options": options}
    write_text(folder / REPORT, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / PAGE, page(content))


def page(content: dict[str, Any]) -> str:
    """The report as one HTML file without links to others; all text from the data is escaped."""
    return (
        environment()
        .get_template("prepare.html")
        .render(
            title=f"{content['name']}: {content['written']:,} of {content['read']:,} examples",
            options=json.dumps(content["options"], indent=2, ensure_ascii=False),
            causes=[
                (f"{step['step']}, {heading}", cause, entry)
                for step in content["steps"]
                for heading, causes in (("left out", step["dropped"]), ("noted", step["noted"]))
                for cause, entry in _by_count(causes)
            ],
            **{name: content[name] for name in ("splits", "steps", "read")},
        )
    )


def _by_count(causes: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(causes.items(), key=lambda item: (-item[1]["count"], item[0]))
