"""A self-contained report page: everything inlined, everything escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipjax.atomic import write_text
from clipjax.report.table import format_value

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .9rem .2rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums } tr:nth-child(even) { background: #f5f6f8 }
.bar { background: #dbe4f0; height: .8rem; width: 14rem; position: relative } 
.bar i { background: #2b6cb0; height: 100%; display: block }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: #c05621 }
details { margin: .6rem 0 } pre { background: #f5f6f8; padding: .8rem; overflow: auto } img { max-width: 100% }
"""


def write_html(
    path: str | Path,
    *,
    title: str,
    results: dict[str, dict[str, Any]],
    config: dict[str, Any],
    notes: dict[str, Any],
    figures: Sequence[str | Path] = (),
) -> None:
    """Writes the report. results: {evaluator: {metric: value}}; notes and config are shown folded; figures: PNGs."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for evaluator, metrics in results.items():
        settings = config.get("eval", {}).get("evaluators", {}).get(evaluator, {})
        source = settings.get("source", {})
        parts.append(f"<h2>{html.escape(evaluator)}</h2>")
        where = f"{settings.get('name', '')} on {source.get('path', '')}, split {source.get('split', '')}"
        parts.append(f"<p>{html.escape(where)}</p>")
        if settings.get("templates") and settings.get("name") == "zero_shot":
            prompts = ", ".join(f"“{template}”" for template in settings["templates"])
            parts.append(f"<p>Prompts: {html.escape(prompts)}</p>")
        rows = "".join(_row(name, value, metrics.get("chance")) for name, value in metrics.items())
        parts.append(f"<table>{rows}</table>")
    for figure in figures:
        data = base64.b64encode(Path(figure).read_bytes()).decode()
        parts.append(f'<img alt="{html.escape(Path(figure).name)}" src="data:image/png;base64,{data}">')
    for name, value in {**notes, "config": config}.items():
        text = html.escape(json.dumps(value, indent=2, sort_keys=True, default=str))
        parts.append(f"<details><summary>{html.escape(name)}</summary><pre>{text}</pre></details>")
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    write_text(path, f"{page}<style>{STYLE}</style><body>{''.join(parts)}</body></html>")


def _row(name: str, value: Any, chance: float | None) -> str:
    bar = ""
    if isinstance(value, float) and 0 <= value <= 1 and not name.endswith("rank") and name != "chance":
        mark = f'<b style="left:{100 * chance:.2f}%" title="chance"></b>' if chance is not None else ""
        bar = f'<div class="bar"><i style="width:{100 * value:.2f}%"></i>{mark}</div>'
    text = html.escape(format_value(name, value))
    return f'<tr><td>{html.escape(name)}</td><td class="number">{text}</td><td>{bar}</td></tr>'
