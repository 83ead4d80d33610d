"""A comparison of runs as text, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from clipjax.processes import duration
from clipjax.report.compare import Comparison, Group
from clipjax.report.statistics import LEVEL, Difference, Spread
from clipjax.runs.sweep import short_names, value_text

MEASURED = "mean ± standard deviation over seeds"  # how the first line of text and Markdown ends
FIRST_COLUMNS = ["metric", "setting"]  # of CSV

TESTS = {
    "paired": "a paired t-test over the seeds that a setting shares with the baseline",
    "welch": "Welch's t-test, because fewer than two seeds are shared",
}


def to_text(comparisons: Sequence[Comparison]) -> str:
    """Aligned columns, with the notes below each table."""
    parts = []
    for found in comparisons:
        table = [_head(found), *(_row(found, group) for group in found.groups)]
        widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
        lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in table]
        parts.append("\n".join([title(found), "", *(line.rstrip() for line in lines), "", *remarks(found)]))
    return "\n\n".join(parts) + "\n"


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """A table for each metric, with the notes as a list below it."""
    parts = []
    for found in comparisons:
        table = [_head(found), ["---"] * len(_head(found)), *(_row(found, group) for group in found.groups)]
        lines = [
            "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in line) + " |" for line in table
        ]
        notes = [f"- {line.strip()}".replace("*", "\\*") for line in remarks(found)]
        parts.append("\n".join([f"**{title(found)}**", "", *lines, "", *notes]))
    return "\n\n".join(parts) + "\n"


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """A line for each metric and setting, with full numbers; an empty cell is a number that there is not."""
    fields = list(dict.fromkeys(field for found in comparisons for field in found.fields))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [
        *FIRST_COLUMNS, *fields, "n", "seeds", "mean", "standard_deviation", "baseline", "difference", "low95",
        "high95", "p", "p_holm", "comparisons", "test", "significant", "better", "seconds", "images",
        "images_per_second", "target", "runs_that_reached_target", "images_to_target", "seconds_to_target",
    ]  # fmt: skip
    writer.writerow(columns)
    for found in comparisons:
        for group in found.groups:
            pair, reached = group.difference, group.target
            tested = pair is not None and bool(pair.test)
            row = [
                found.metric,
                group.name,
                *(value_text(group.settings[field]) if field in group.settings else "" for field in fields),
                group.spread.count,
                " ".join(map(str, sorted(group.values))),
                group.spread.mean,
                group.spread.deviation,
                found.baseline,
                *((pair.mean, pair.low, pair.high, pair.p, pair.corrected) if pair else ("",) * 5),
                found.comparisons,
                pair.test if pair else "",
                str(pair.significant).lower() if tested else "",
                "" if group.better is None else str(group.better).lower(),
                group.seconds.mean,
                group.images.mean,
                group.images_per_second.mean,
                "" if found.target is None else found.target,
                *((reached.reached, reached.images.mean, reached.seconds.mean) if reached else ("",) * 3),
            ]
            writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
    return file.getvalue()


FORMATS: dict[str, Callable[[Sequence[Comparison]], str]] = {
    "text": to_text,
    "csv": to_csv,
    "markdown": to_markdown,
}


def is_comparison(head: str) -> bool:
    """Whether a file that begins like this is a comparison, in any of the formats."""
    line = head.partition("\n")[0]
    return line.rstrip("*").endswith(MEASURED) or line.split(",")[:2] == FIRST_COLUMNS


def title(found: Comparison) -> str:
    """What the table shows, in a line."""
    better = "smaller" if found.smaller_is_better else "larger"
    which = {"last": "at the end of training", "best": "at each run's best evaluation"}
    return f"{found.metric} {which.get(found.step, f'at step {found.step}')}, {better} is better: {MEASURED}"


def remarks(found: Comparison) -> list[str]:
    """What a reader must know: the tests, what the columns mean, which runs do not count, and what else differs."""
    pairs = [group.difference for group in found.groups if group.difference]
    lines = []
    used = [TESTS[test] for test in TESTS if any(pair.test == test for pair in pairs)]
    if used:
        lines.append(
            f"* the spread over seeds does not explain the difference: p below {LEVEL:g} in "
            f"{', or '.join(used)}, after Holm's correction for {found.comparisons} "
            f"comparison{'s' * (found.comparisons > 1)}. The 95% intervals are not corrected."
        )
    for group in found.groups:
        if group.difference and group.difference.why_not:
            lines.append(f"No test of {group.name}: {group.difference.why_not}.")
    lines.append(
        "wall time: of each run's processes, with start, evaluations and checkpoints, over all tries."
        if found.wall_time
        else "training time: of the steps, as metrics.jsonl has it, without start, evaluations and checkpoints."
    )
    if found.target is not None:
        lines.append(
            f"to target: the first evaluation that reached {_value(found, found.target)}; nothing is interpolated. "
            "Time is that of the steps."
        )
    lines += [f"Note: {note}" for note in found.notes]
    for name, changes in found.changes.items():
        lines.append(f"{name} also differs from the baseline in")
        lines += [f"  config.{field}: {old!r} -> {new!r}" for field, (old, new) in changes.items()]
    return lines


def _head(found: Comparison) -> list[str]:
    names = list(short_names(found.fields).values()) if found.fields else ["run"]
    time = "wall time" if found.wall_time else "training time"
    head = [*names, "seeds", found.metric, "difference", "95% interval", "p (Holm)", "", time, "images", "images/s"]
    return head + (["images to target", "time to target"] if found.target is not None else [])


def _row(found: Comparison, group: Group) -> list[str]:
    if found.fields:
        row = [value_text(group.settings[field]) if field in group.settings else "-" for field in found.fields]
    else:
        row = [group.name]
    row += [str(group.spread.count), _mean(group.spread, lambda value: _value(found, value))]
    row += ["baseline", "", "", ""] if group.difference is None else _difference(found, group, group.difference)
    row += [_number(group.seconds, duration), _number(group.images, _whole), _number(group.images_per_second, _whole)]
    if (reached := group.target) is not None:
        some = f" ({reached.reached} of {reached.runs})" if 0 < reached.reached < reached.runs else ""
        never = "not reached" if reached.runs else "-"
        row += (
            [_mean(reached.images, _whole) + some, _number(reached.seconds, duration)]
            if reached.reached
            else [never, "-"]
        )
    return row


def _difference(found: Comparison, group: Group, pair: Difference) -> list[str]:
    if math.isnan(pair.mean):
        return ["-", "", "", ""]
    unit = " pts" if found.share else ""
    cells = [_signed(found, pair.mean) + unit]
    if not pair.test:
        return [*cells, "-", "-", "no test"]
    mark = {True: " better", False: " worse", None: ""}[group.better]
    p = "<0.0001" if pair.corrected < 1e-4 else f"{pair.corrected:.4f}"
    return [
        *cells,
        f"{_signed(found, pair.low)} to {_signed(found, pair.high)}",
        p,
        f"*{mark}" if pair.significant else "within the spread",
    ]


def _mean(spread: Spread, text: Callable[[float], str]) -> str:
    if math.isnan(spread.mean):
        return "-"
    return text(spread.mean) + ("" if math.isnan(spread.deviation) else f" ± {text(spread.deviation)}")


def _number(spread: Spread, text: Callable[[float], str]) -> str:
    return "-" if math.isnan(spread.mean) else text(spread.mean)


def _value(found: Comparison, value: float) -> str:
    return f"{value:.2%}" if found.share else f"{value:,.4g}"


def _signed(found: Comparison, value: float) -> str:
    return f"{100 * value:+.2f}" if found.share else f"{value:+,.4g}"


def _whole(value: Any) -> str:
    return f"{value:,.0f}"
