"""What became of every example: report.json, and a page with the same content."""

from __future__ import annotations

import html
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from clipjax.files import write_text
from clipjax.report.html import STYLE
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
    title = f"{content['name']}: {content['written']:,} of {content['read']:,} examples"
    parts = [f"<h1>{html.escape(title)}</h1>", _splits(content["splits"]), "<h2>Step by step</h2>", _flow(content)]
    for step in content["steps"]:
        for heading, causes in (("left out", step["dropped"]), ("noted", step["noted"])):
            parts += [_cause(f"{step['step']}, {heading}", cause, entry) for cause, entry in _by_count(causes)]
    options = html.escape(json.dumps(content["options"], indent=2, ensure_ascii=False))
    parts.append(f"<h2>Options</h2><pre>{options}</pre>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _splits(splits: dict[str, dict[str, int]]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(name)}<td class="number">{s["records"]:,}<td class="number">{s["shards"]:,}'
        f'<td class="number">{s["bytes"] / 1e6:,.1f} MB</tr>'
        for name, s in splits.items()
    )
    return f"<table><tr><th>split<th>records<th>shards<th>size</tr>{rows}</table>"


def _flow(content: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(step["step"])}<td class="number">{step["in"]:,}'
        f'<td class="number">{step["in"] - step["out"]:,}<td class="number">{step["out"]:,}'
        f'<td><div class="bar"><i style="width:{100 * step["out"] / max(1, content["read"]):.2f}%"></i></div></tr>'
        for step in content["steps"]
    )
    return f"<table><tr><th>step<th>in<th>left out<th>left<th>share of all that was read</tr>{rows}</table>"


def _cause(where: str, cause: str, entry: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(sample['key'])}<td>{html.escape(sample['text'])}</tr>" for sample in entry["samples"]
    )
    summary = f"{html.escape(where)}: {html.escape(cause)}, {entry['count']:,}"
    return f"<details><summary>{summary}</summary><table><tr><th>key<th>what</tr>{rows}</table></details>"


def _by_count(causes: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(causes.items(), key=lambda item: (-item[1]["count"], item[0]))
