"""The page about one or more runs: one HTML file that loads nothing, made by the templates beside this file.

write_report("report.html", read_runs(["runs/a", "runs/b"]))
"""

from __future__ import annotations

import collections
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from clipjax.config import differences
from clipjax.config.metrics import is_share
from clipjax.files import write_text
from clipjax.report import plots
from clipjax.report.goodput import goodput_rows, memory_text, seconds_text, starts_text
from clipjax.report.pictures import is_thumbnail
from clipjax.report.run_data import RunData
from clipjax.report.table import format_value, rows

TEMPLATES = Path(__file__).parent / "templates"
BAD_SHOWN = 20  # bad records of a run that are listed
HEADLINES = 6  # numbers at the top of the page


def write_report(path: str | Path, runs: Sequence[RunData], comparison: str = "") -> None:
    """Writes the page about these runs. comparison: a table of them, as text; "" for none."""
    write_text(path, render_report(runs, comparison))


def is_page(head: str) -> bool:
    """Whether a file that begins like this is a page of clipjax."""
    start, _, _ = (TEMPLATES / "base.html").read_text(encoding="utf-8").partition("{{")
    return head.startswith(start)


def step_of_page(path: Path) -> int | None:
    """The step of the run that a page shows, of several the first; None where it says none."""
    page = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'<p class="run-line">.*</span> step ([\d,]+)', page)
    return int(found[1].replace(",", "")) if found else None


def render_report(runs: Sequence[RunData], comparison: str = "") -> str:
    """The page about these runs as HTML; see write_report."""
    charts = plots.curves({run.name: run.metrics for run in runs})
    drawn: dict[str, Any] = {f"curve-{i}": chart["figure"] for i, chart in enumerate(charts)}
    spaces: dict[str, Any] = {}
    for i, run in enumerate(runs):
        if run.snapshots and len(run.snapshots[0].image):
            spaces[str(i)] = space = _space(run)
            frames = space["frames"]
            captions = [pair["caption"] for pair in space["pairs"]]
            chosen = [space["pairs"][row] for row in frames["rows"]]
            drawn[f"plane-{i}"] = plots.projection(frames["share"], frames["limit"], captions)
            drawn[f"matrix-{i}"] = plots.similarity(
                [pair["caption"] for pair in chosen], [pair["image"] for pair in chosen]
            )
    return environment().get_template("report.html").render(
        title=", ".join(run.name for run in runs),
        runs=[_view(run, i) for i, run in enumerate(runs)],
        charts=[{**chart, "id": f"curve-{i}"} for i, chart in enumerate(charts)],
        changes=config_changes(runs),
        comparison=comparison,
        data={"plots": drawn, "spaces": spaces},
        plotly=plotly_source(),
    )  # fmt: skip


def _space(run: RunData) -> dict[str, Any]:
    """What the page's script shows of a run's snapshots."""
    pairs = [
        {"caption": pair.get("caption", ""), "image": pair["image"] if is_thumbnail(pair.get("image")) else ""}
        for pair in run.pairs["pairs"]
    ]
    return {"frames": plots.frames(run.snapshots), "pairs": pairs, "total": run.total_steps}


def _view(run: RunData, number: int) -> dict[str, Any]:
    """A run as the template shows it."""
    causes = collections.Counter(record.get("cause", "?") for record in run.bad_records)
    return {
        "name": run.name,
        "directory": run.directory,
        "number": number,
        "colour": plots.colour(number),
        "state": _state(run),
        "headlines": _headlines(run),
        "advice": run.advice,
        "results": run.results,
        "results_step": run.results_step,
        "evaluators": run.config.get("eval", {}).get("evaluators", {}),
        "missing": run.missing,
        "time": _time(run),
        "predictions": run.predictions,
        "pairs_source": (run.pairs or {}).get("source", ""),
        "snapshots": len(run.snapshots),
        "last_snapshot": run.snapshots[-1].step if run.snapshots else None,
        "bad": run.bad_records[:BAD_SHOWN],
        "bad_causes": causes.most_common(),
        "replaced": _replaced(run),
        "config": json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    }


def _time(run: RunData) -> dict[str, Any] | None:
    """Where the run's time went; None for one without accounts."""
    found = run.goodput
    if found is None:
        return None
    return {
        "total": f"{seconds_text(found.wall)} in {starts_text(found)}",
        "since": found.first_step,
        "goodput": found.goodput,
        "rows": goodput_rows(found),
        "memory": memory_text(found.memory),
    }


def _state(run: RunData) -> str:
    """'step 600 of 1,200, not finished'"""
    if run.step is None:
        return "nothing was logged"
    if not run.total_steps:
        return f"step {run.step:,}" if run.step else "weights without a training log"
    done = "finished" if run.step >= run.total_steps else "not finished when this page was made"
    return f"step {run.step:,} of {run.total_steps:,}, {done}"


def _headlines(run: RunData) -> list[tuple[str, str, str]]:
    """[(name, value, remark), ...]: the numbers at the top of a run."""
    found = []
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    for evaluator, result in run.results.items():
        for row in rows(result):
            if row.metric.endswith(plots.FIRST) and is_share(row.metric, row.value):
                low_high = [format_value(row.metric, bound) for bound in row.interval or ()]
                chance = [f"chance {row.chance:.2%}"] if row.chance is not None else []
                remark = ", ".join([*(["95%: " + " to ".join(low_high)] if low_high else []), *chance])
                found.append((f"{evaluator} · {row.metric}", format_value(row.metric, row.value), remark))
    found = found[: HEADLINES - 1]
    if losses:
        found.append(("loss", f"{losses[-1]:.4g}", f"from {losses[0]:.4g}"))
    return found


def _replaced(run: RunData) -> dict[str, int]:
    """{cause: how often a bad record was replaced in training}, as the last line of metrics.jsonl that has it says."""
    counts = {
        key.partition("/")[2]: value
        for line in run.metrics
        for key, value in line.items()
        if key.startswith("bad_records/") and value == value
    }
    return {cause: int(count) for cause, count in counts.items() if count}


def config_changes(runs: Sequence[RunData]) -> list[tuple[str, list[Any]]]:
    """[(field, its value in each run), ...] of the fields in which any two runs differ; [] for a single run."""
    fields = [run.fields for run in runs]
    names = sorted({name for other in fields[1:] for name in differences(fields[0], other)})
    return [(name, [own.get(name) for own in fields]) for name in names]


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of clipjax/report/templates. Every value is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"rows": rows, "is_share": is_share, "format_value": format_value}
    found.filters["percent"] = lambda share: f"{share:.1%}" if share >= 0.001 else "<0.1%"
    found.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    found.tests["thumbnail"] = is_thumbnail
    return found


@functools.cache
def plotly_source() -> str:
    """The JavaScript of the installed Plotly, which the page contains."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
