"""Results as a plain-text table, and the rows that tables and pages of results share."""

from __future__ import annotations

from typing import Any, NamedTuple

from clipjax.config.metrics import is_share


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """{evaluator: {metric: value}} as aligned lines 'evaluator  metric  value', with shares as percentages.

    A 95% interval ("top1_low", "top1_high") follows the value of its metric.
    """
    table = [
        (evaluator, row.metric, format_value(row.metric, row.value), _interval(row))
        for evaluator, result in results.items()
        for row in rows(result)
    ]
    widths = [max((len(line[i]) for line in table), default=0) for i in range(3)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in table)


class Row(NamedTuple):
    metric: str
    value: Any
    interval: tuple[float, float] | None  # 95%
    chance: float | None  # the value that guessing would give


def rows(result: dict[str, Any]) -> list[Row]:
    """An evaluator's metrics in their order, each with its interval and chance; without its details."""
    result = {metric: value for metric, value in result.items() if not isinstance(value, dict | list)}
    bounds = {metric: (f"{metric}_low", f"{metric}_high") for metric in result}
    bounds = {metric: pair for metric, pair in bounds.items() if all(bound in result for bound in pair)}
    shown_beside = {bound for pair in bounds.values() for bound in pair}
    table = []
    for metric, value in result.items():
        if metric not in shown_beside:
            interval = tuple(result[bound] for bound in bounds[metric]) if metric in bounds else None
            table.append(Row(metric, value, interval, _chance(metric, result)))
    return table


def format_value(metric: str, value: Any) -> str:
    """A share as a percentage, other numbers with four digits or in full."""
    if is_share(metric, value):
        return f"{value:.2%}"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _chance(metric: str, result: dict[str, Any]) -> float | None:
    """The value of guessing: METRIC_chance, or of guessing among the classes; top5 has five guesses."""
    if f"{metric}_chance" in result:
        return result[f"{metric}_chance"]
    chance = result.get("chance")
    tries = {"top1": 1, "mean_per_class_recall": 1, "mean_average_precision": 1, "top5": 5}.get(metric)
    return None if chance is None or tries is None else min(1.0, tries * chance)


def _interval(row: Row) -> str:
    if row.interval is None:
        return ""
    low, high = (format_value(row.metric, bound) for bound in row.interval)
    return f"95%: {low} to {high}"
