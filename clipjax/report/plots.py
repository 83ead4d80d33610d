"""Data -> Plotly figures, {"data": [...], "layout": {...}} of JSON values; the page adds the colours of its theme."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.config.metrics import is_count
from clipjax.report.figures import SMOOTH_FROM, running_mean
from clipjax.report.projection import measures, plane_of
from clipjax.runs.snapshots import Snapshot

Figure = dict[str, Any]
COLOURS = ("#3b82c4", "#e07b39", "#3f9c5a", "#9a6ac4", "#d1495b", "#2a9d9d", "#a8842c", "#7a7f8a")
MOST_POINTS = 1500  # of a curve; more are averaged in groups
MOST_STEPS = 60  # of the slider
CELLS = 16  # pairs in the similarity matrix
SHARES = ("mfu", "goodput", "data_wait")  # of a whole, besides evaluators' metrics
FIRST = ("top1", "top5", "_r1", "_r5")  # ends of the metrics that are shown first


def colour(number: int) -> str:
    """The colour of the run with this number."""
    return COLOURS[number % len(COLOURS)]


def curves(runs: Mapping[str, Sequence[dict[str, float]]]) -> list[dict[str, Any]]:
    """The curves of one or more runs: [{"title", "group", "figure"}, ...], with a line for each run in each figure.

    runs: {name: lines of metrics.jsonl}. group: "training", "evaluation" or "more". A run without a metric has no line
    in its figure; a metric that no run has, no figure.
    """
    names = list(dict.fromkeys(name for lines in runs.values() for line in lines for name in line if name != "step"))
    first = {"loss": "Loss", "learning_rate": "Learning rate", "images_per_second": "Images a second"}
    first |= {"logit_scale": "Logit scale (1 / temperature)", "mfu": "MFU (model FLOPs utilisation)"}
    evaluation = _evaluation_metrics(names)
    groups = [("training", name, title) for name, title in first.items() if name in names]
    groups += [("evaluation", name, name.replace("/", " · ")) for name in names if name in evaluation]
    groups += [("more", name, name) for name in names if name not in first and name not in evaluation]
    charts = []
    for group, name, title in groups:
        series = {run: _series(lines, name) for run, lines in runs.items()}
        if any(len(y) for _, y in series.values()):
            charts.append({"title": title, "group": group, "figure": _curve(series, name)})
    return charts


def _evaluation_metrics(names: Sequence[str]) -> set[str]:
    """Each evaluator's accuracies and recalls, or its first three metrics where it reports none."""
    shown: set[str] = set()
    for evaluator in {name.partition("/")[0] for name in names if "/" in name} - {"bad_records", "epoch", "examples"}:
        own = [name for name in names if name.startswith(f"{evaluator}/")]
        shown |= set([name for name in own if name.endswith(FIRST)] or own[:3])
    return shown


def _series(lines: Sequence[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    steps, values = (np.array([pair[i] for pair in found], float) for i in (0, 1))
    return steps, values


def _curve(series: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str) -> Figure:
    traces, values = [], []
    for number, (run, (steps, y)) in enumerate(series.items()):
        steps, y = _thinned(steps, y)
        values.append(y[np.isfinite(y)])
        smooths = name == "loss" and np.isfinite(y).sum() >= SMOOTH_FROM
        line = {"color": colour(number), "width": 2}
        if smooths:
            traces.append(_line(steps, y, {**line, "width": 1}, opacity=0.3, hoverinfo="skip"))
            finite = np.isfinite(y)
            steps, y = steps[finite], running_mean(y[finite])
        traces.append(_line(steps, y, line, mode="lines+markers" if len(y) <= 30 else "lines", run=run))
    values = np.concatenate(values)
    may_be_share = name in SHARES or ("/" in name and not name.endswith("rank") and not is_count(name))
    share = may_be_share and len(values) and 0 <= values.min() and values.max() <= 1
    layout: Figure = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"tickformat": ".2~%"} if share else {},
        "margin": {"l": 52, "r": 12, "t": 8, "b": 40},
        "showlegend": False,
        "hovermode": "closest",
    }
    if share:
        layout["yaxis"]["rangemode"] = "tozero"
    if name == "loss" and len(values) and values.min() > 0 and values.max() > 10 * values.min():
        layout["yaxis"] = {"type": "log", "title": {"text": "logarithmic"}}
    return {"data": traces, "layout": layout}


def _line(steps: np.ndarray, y: np.ndarray, line: dict[str, Any], run: str = "", **others: Any) -> Figure:
    hover = {"hovertemplate": "%{y:.4g} at step %{x}<extra>" + plain(run) + "</extra>"} if run else {}
    return {
        "type": "scatter", "mode": "lines", "x": numbers(steps, 8), "y": numbers(y, 6), "line": line, **hover, **others
    }  # fmt: skip


def _thinned(steps: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS points, each the mean of the finite ones among its neighbours."""
    if len(y) <= MOST_POINTS:
        return steps, y
    groups = [rows for rows in np.array_split(np.arange(len(y)), MOST_POINTS) if len(rows)]
    means = [y[rows][np.isfinite(y[rows])].mean() if np.isfinite(y[rows]).any() else np.nan for rows in groups]
    return np.array([steps[rows].mean() for rows in groups]), np.array(means)


def similarity(captions: Sequence[str], thumbnails: Sequence[str]) -> Figure:
    """The frame of a matrix of n images by n captions; frames() has the values of each step.

    Images are rows, from top to bottom; captions are columns.
    """
    n = len(captions)
    short = [plain(textwrap.shorten(caption, 26, placeholder="…") or "…") for caption in captions]
    images = [
        {
            "source": picture, "xref": "paper", "yref": "y", "x": 0, "y": i, "sizex": 0.9 / max(n, 1), "sizey": 0.9,
            "xanchor": "right", "yanchor": "middle", "layer": "above",
        }
        for i, picture in enumerate(thumbnails)
    ]  # fmt: skip
    own = [
        {"type": "rect", "x0": i - 0.5, "x1": i + 0.5, "y0": i - 0.5, "y1": i + 0.5, "line": {"width": 1.5}}
        for i in range(n)
    ]
    heat = {
        "type": "heatmap", "z": [], "xgap": 1, "ygap": 1, "zmid": 0, "colorbar": {"thickness": 10, "len": 0.6},
        "customdata": [[[wrapped(image), wrapped(text)] for text in captions] for image in captions],
        "hovertemplate": "cosine %{z:.3f}<br>image: %{customdata[0]}<br>caption: %{customdata[1]}<extra></extra>",
    }  # fmt: skip
    layout = {
        "images": images,
        "shapes": own,
        "xaxis": {
            "tickvals": list(range(n)), "ticktext": short, "tickangle": -60, "side": "bottom", "showgrid": False,
            "zeroline": False, "range": [-0.5, n - 0.5],
        },
        "yaxis": {"showticklabels": False, "showgrid": False, "zeroline": False, "range": [n - 0.5, -0.5]},
        "margin": {"l": 92, "r": 8, "t": 8, "b": 156},
    }  # fmt: skip
    return {"data": [heat], "layout": layout}


def projection(share: np.ndarray, limit: float, captions: Sequence[str]) -> Figure:
    """The frame of the plane: lines between pairs, images and texts; frames() has the points of each step."""
    hover = "%{text}<extra></extra>"
    text = [wrapped(caption) for caption in captions]
    point = {"type": "scatter", "mode": "markers", "x": [], "y": [], "hovertemplate": hover, "text": text}
    ends = [-1.08 * limit, 1.08 * limit]
    axes = [
        {"title": {"text": f"component {i + 1} ({part:.0%} of the variance)"}, "range": ends, "zeroline": False}
        for i, part in enumerate(share)
    ]
    line = {"type": "scatter", "mode": "lines", "x": [], "y": [], "hoverinfo": "skip", "name": "pairs"}
    return {
        "data": [
            {**line, "line": {"width": 1, "color": "#8a93a3"}, "opacity": 0.55},
            {**point, "name": "images", "marker": {"size": 9, "color": COLOURS[0]}},
            {**point, "name": "captions", "marker": {"size": 9, "color": COLOURS[1], "symbol": "diamond"}},
        ],
        "layout": {
            "xaxis": axes[0],
            "yaxis": {**axes[1], "scaleanchor": "x"},
            "margin": {"l": 52, "r": 8, "t": 36, "b": 44},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "hovermode": "closest",
        },
    }


def frames(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """What the slider shows: {"steps", "image", "text", "similarity", "measures", "rows", "limit", "share", "scales"}.

    image, text: for each step n points [x, y] on the plane of the last step; points without numbers are null.
    similarity: for each step the cosines of `rows`, the pairs of the matrix. Of more than MOST_STEPS snapshots, some
    spread over all are taken, with the first and the last.
    """
    chosen = np.unique(np.linspace(0, len(snapshots) - 1, min(MOST_STEPS, len(snapshots))).astype(int))
    plane = plane_of(snapshots)
    shown = [snapshots[i] for i in chosen]
    n = len(shown[0].image)
    rows = np.unique(np.linspace(0, n - 1, min(CELLS, n)).astype(int)) if n else np.zeros(0, int)
    image, text = ([plane.project(getattr(found, side)) for found in shown] for side in ("image", "text"))
    both = np.abs(np.array(image + text))
    matrices = [found.similarity[np.ix_(rows, rows)] for found in shown]
    return {
        "steps": [found.step for found in shown],
        "image": [[numbers(point, 4) for point in points] for points in image],
        "text": [[numbers(point, 4) for point in points] for points in text],
        "similarity": [[numbers(row, 4) for row in matrix] for matrix in matrices],
        "measures": [measures(found) for found in shown],
        "scales": [number(found.logit_scale, 6) for found in shown],
        "rows": rows.tolist(),
        "limit": float(both[np.isfinite(both)].max(initial=0)) or 1.0,
        "share": numbers(plane.share, 4),
    }


def numbers(values: Sequence[float], digits: int) -> list[float | None]:
    """JSON's numbers: rounded to significant digits, null for what is not finite."""
    return [number(value, digits) for value in values]


def number(value: float, digits: int) -> float | None:
    value = float(f"{float(value):.{digits}g}")
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else value


def plain(text: str) -> str:
    """A text as Plotly shows it letter by letter: it would read <b>, <br> and &lt; as HTML, and %{x} as a variable."""
    return html.escape(" ".join(text.split()), quote=False).replace("%{", "%\u200b{")


def wrapped(text: str, width: int = 44, lines: int = 5) -> str:
    """plain, in lines."""
    return "<br>".join(plain(line) for line in textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
