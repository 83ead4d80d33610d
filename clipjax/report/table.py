"""Results as a plain-text table."""

from __future__ import annotations

from typing import Any


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """{evaluator: {metric: value}} -> lines 'evaluator  metric  value', aligned; shares also as per cent."""
    rows = [
        (evaluator, metric, format_value(metric, value))
        for evaluator, result in results.items()
        for metric, value in result.items()
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)


def format_value(metric: str, value: Any) -> str:
    if isinstance(value, float) and 0 <= value <= 1 and not metric.endswith("rank"):
        return f"{value:.2%}"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
