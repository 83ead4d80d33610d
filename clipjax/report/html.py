"""A self-contained report page: everything is inlined and escaped."""

from __future__ import annotations

import base64
import html
import json
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipjax.files import write_text
from clipjax.report.table import Row, format_value, is_share, rows

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2733 }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem }
p { margin: .2rem 0; color: #4a5568 } q { color: #1f2733 }
table { border-collapse: collapse; margin: .8rem 0 } td, th { padding: .25rem 1rem .25rem .4rem; text-align: left }
th { font-weight: 600; border-bottom: 1px solid #cbd5e0 } tr:nth-child(even) td { background: #f5f6f8 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #dbe4f0; height: .8rem; width: 14rem; position: relative }
.bar i { background: #2b6cb0; height: 100%; display: block }
.bar u { background: #1f2733; opacity: .45; height: 3px; top: calc(50% - 1px); position: absolute }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: #c05621 }
.key { font-size: .85rem } .key b { color: #c05621 }
details { margin: .6rem 0 } pre { background: #f5f6f8; padding: .8rem; overflow: auto } img { max-width: 100% }
"""
KEY = "Lines in the bars: <b>chance</b>, and the 95% interval. Ties count against the model."


def write_html(
    path: str | Path,
    *,
    title: str,
    results: dict[str, dict[str, Any]],
    config: dict[str, Any],
    notes: dict[str, Any],
    figures: Sequence[str | Path] = (),
) -> None:
    """Writes the report.

    results: {evaluator: {metric: value}}. config: the experiment's, as JSON. notes: {name: JSON value}, shown folded,
    as config is. figures: image files. Whatever is missing in these is left out of the page.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _line(_pixels(config))]
    for evaluator, result in results.items():
        settings = config.get("eval", {}).get("evaluators", {}).get(evaluator, {})
        parts += [f"<h2>{html.escape(evaluator)}</h2>", _line(_source(settings)), _prompts(settings, result)]
        body = "".join(_row(row) for row in rows(result))
        parts.append(f"<table><tr><th>metric<th>value<th>95% interval<th></tr>{body}</table>")
    parts.append(f'<p class="key">{KEY}</p>')
    for figure in figures:
        data = base64.b64encode(Path(figure).read_bytes()).decode()
        kind = mimetypes.guess_type(figure)[0] or "image/png"
        parts.append(f'<img alt="{html.escape(Path(figure).name)}" src="data:{kind};base64,{data}">')
    for name, value in {**notes, "config": config}.items():
        text = html.escape(json.dumps(value, indent=2, sort_keys=True, default=str))
        parts.append(f"<details><summary>{html.escape(name)}</summary><pre>{text}</pre></details>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    write_text(path, f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>')


def _line(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _source(settings: dict[str, Any]) -> str:
    source = settings.get("source", {})
    if not source:
        return ""
    names = f", class names from {settings['class_names']}" if settings.get("class_names") else ""
    return f"{settings.get('name', '')} on {source.get('path', '')}, split {source.get('split', '')}{names}"


def _prompts(settings: dict[str, Any], result: dict[str, Any]) -> str:
    used = result.get("details", {}).get("prompts", settings).get("templates", ())
    quoted = ", ".join(f"<q>{html.escape(template)}</q>" for template in used)
    return f"<p>Prompts: {quoted}</p>" if quoted else ""


def _pixels(config: dict[str, Any]) -> str:
    pixels, image = config.get("data", {}).get("pixels"), config.get("model", {}).get("image", {})
    if not pixels:
        return ""
    resize = {"squash": "squashed", "center_crop": "resized and cropped at the centre"}.get(pixels.get("resize"), "")
    mean, std = ([round(value, 4) for value in pixels.get(name, ())] for name in ("mean", "std"))
    size = image.get("image_size", "?")
    shape = f"{resize} to {size} x {size}"
    if "max_patches" in image:
        p = image["patch_size"]
        shape = f"of their own aspect ratio, at most {image['max_patches']} patches of {p} x {p}"
    return f"Images: {shape} ({pixels.get('interpolation')}), mean {mean}, std {std}."


def _row(row: Row) -> str:
    share = is_share(row.metric, row.value) and row.metric != "chance"
    interval = html.escape(" to ".join(format_value(row.metric, bound) for bound in row.interval or ()))
    value = html.escape(format_value(row.metric, row.value))
    cells = f'<td>{html.escape(row.metric)}</td><td class="number">{value}</td><td class="number">{interval}</td>'
    return f"<tr>{cells}<td>{_bar(row) if share else ''}</td></tr>"


def _bar(row: Row) -> str:
    marks = f'<i style="width:{100 * row.value:.2f}%"></i>'
    if row.interval is not None:
        low, high = row.interval
        marks += f'<u style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></u>'
    if row.chance is not None:
        chance = f"chance {row.chance:.2%}"
        marks += f'<b style="left:{100 * row.chance:.2f}%" title="{chance}"></b>'
    return f'<div class="bar">{marks}</div>'
