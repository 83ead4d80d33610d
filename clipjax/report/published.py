"""Results as the files that CLIP_benchmark writes, one per data set; its `clip_benchmark build` makes a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.config import EvaluatorConfig, require
from clipjax.files import write_text

FOLDER = "clip_benchmark"


def clip_benchmark_entry(
    name: str, evaluator: EvaluatorConfig, result: Mapping[str, Any], *, model: str, pretrained: str
) -> dict[str, Any] | None:
    """What CLIP_benchmark would write about a result; None where it has no such measurement.

    name: the evaluator's, which is the data set's unless evaluator.published_as says otherwise. model, pretrained: what
    to call the weights. Numbers that are not finite become None, because JSON has none.
    """
    metrics = evaluator.published_metrics(result) if evaluator.published_task else {}
    if not metrics:
        return None
    return {
        "dataset": evaluator.published_as or name,
        "model": model,
        "pretrained": pretrained,
        "task": evaluator.published_task,
        "metrics": {metric: finite(value) for metric, value in metrics.items()},
        "language": language(evaluator),
    }


def language(evaluator: EvaluatorConfig) -> str:
    """Of its class names, or of its captions."""
    return getattr(evaluator, "language", "") or getattr(evaluator.source, "language", "") or "en"


def refuse_one_file(evaluators: Mapping[str, EvaluatorConfig]) -> None:
    """Raises ConfigError for two evaluators whose results would be written to one file."""
    names: dict[str, str] = {}
    for name, evaluator in evaluators.items():
        entry = {"dataset": evaluator.published_as or name, "task": evaluator.published_task}
        entry |= {"language": language(evaluator), "model": "MODEL", "pretrained": "PRETRAINED"}
        other = names.setdefault(file_name(entry), name) if evaluator.published_task else name
        require(
            other == name,
            f"The results of the evaluators '{other}' and '{name}' would both be published as {file_name(entry)}. Give "
            "one of them another published_as.",
        )


def file_name(entry: Mapping[str, Any]) -> str:
    """The name of an entry's file: dataset_pretrained_model_language_task.json."""
    parts = (
        entry["dataset"].removeprefix("wds/"),
        *(entry[key] for key in ("pretrained", "model", "language", "task")),
    )
    return "_".join(part.replace("/", "_") for part in parts) + ".json"


def write_entry(out: Path, entry: Mapping[str, Any]) -> None:
    """Writes out/clip_benchmark/NAME.json, in one line."""
    write_text(out / FOLDER / file_name(entry), json.dumps(entry) + "\n")


def finite(value: Any) -> Any:
    """The value, or None for NaN and the infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
