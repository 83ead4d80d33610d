"""An evaluation as files: results.json for programs, report.html for people, and published formats."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clipjax.config import EvaluatorConfig, to_json_dict
from clipjax.files import write_text
from clipjax.inference.session import Evaluation, Record
from clipjax.json_files import read_json
from clipjax.models import patch_budget
from clipjax.processes import duration
from clipjax.report.html import write_html
from clipjax.report.published import clip_benchmark_entry, finite, write_entry
from clipjax.report.suites import SUITES
from clipjax.report.table import format_value, rows
from clipjax.runs import Run
from clipjax.training.state import RAW

RECORDS = "evaluators"  # folder of the records, one file for each evaluator


class ResultFolder:
    """The folder of an evaluation's results, to which each evaluator's are written as soon as there are any.

        out/evaluators/NAME.json     the result and where it comes from; a later evaluation need not repeat it
        out/clip_benchmark/*.json    the same as CLIP_benchmark writes it
        out/eval_results.jsonl       the same as a suite writes it, for evaluations that name one

    evaluators: their names; results of other weights than the evaluated ones (RAW) have names beside these. model,
    pretrained: what to call the weights in those files. suite: a row of SUITES, or "".
    """

    def __init__(self, out: Path, evaluators: Collection[str], *, model: str, pretrained: str, suite: str = ""):
        self.out, self.evaluators, self.model, self.pretrained = out, evaluators, model, pretrained
        self.suite = SUITES[suite] if suite else None
        self.entries: dict[str, dict[str, Any]] = {}

    def stored(self) -> dict[str, Record]:
        """The records of earlier evaluations; a file that is none is left out."""
        found = {}
        for path in (self.out / RECORDS).glob("*.json"):
            try:
                document = read_json(path)
                record = Record(*(document[field] for field in Record._fields))
                result = {metric: math.nan if value is None else value for metric, value in record.result.items()}
                found[path.stem] = record._replace(result=result)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def write(self, name: str, evaluator: EvaluatorConfig, record: Record) -> None:
        """Writes one evaluator's record and published files."""
        write_text(self.out / RECORDS / f"{name}.json", dump(record._asdict()))
        pretrained = self.pretrained + ("" if name in self.evaluators else RAW)
        entry = clip_benchmark_entry(name, evaluator, record.result, model=self.model, pretrained=pretrained)
        if entry:
            write_entry(self.out, entry)
        suite = self.suite if name in self.evaluators else None
        line = suite.entry(name, evaluator, record.result) if suite else None
        if line:
            self.entries[line["key"]] = line
            suite.write(self.out, self.entries)

    def summary(self) -> list[str]:
        """What the suite says about all results."""
        return self.suite.summary(self.entries) if self.suite else []


def headline(name: str, record: Record) -> str:
    """An evaluator's first two numbers and its time, in one line."""
    numbers = "  ".join(f"{row.metric} {format_value(row.metric, row.value)}" for row in rows(record.result)[:2])
    return f"{name}: {numbers}  ({duration(record.seconds)})"


def results_document(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """What results.json holds."""
    config = evaluation.config
    budget = patch_budget(config.model.image)
    return {
        "checkpoint": str(run.directory),
        "step": run.step,
        "results": evaluation.results,
        "provenance": evaluation.provenance,
        **({"absent": evaluation.absent} if evaluation.absent else {}),
        **({"broken": evaluation.broken} if evaluation.broken else {}),
        "fingerprint": run.fingerprint,
        "eval": to_json_dict(config)["eval"],
        "mesh": dict(evaluation.mesh.shape),
        **({"max_patches": budget.max_patches} if budget else {}),
        "seconds": round(evaluation.seconds, 2),
    }


def write_report(out: Path, run: Run, evaluation: Evaluation, document: dict[str, Any]) -> None:
    """Writes out/results.json, which holds `document`, and out/report.html."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "results.json", dump(document, sort_keys=True))
    write_html(
        out / "report.html",
        title=f"{run.directory}, step {run.step}",
        results=evaluation.results,
        config=to_json_dict(evaluation.config),
        notes={
            **({"evaluators without a result": evaluation.broken} if evaluation.broken else {}),
            **({"data that is not there": evaluation.absent} if evaluation.absent else {}),
            "where the results come from": evaluation.provenance,
            "fingerprint": run.fingerprint,
            "mesh": dict(evaluation.mesh.shape),
            "bad records replaced in training": run.bad_causes or "none",
        },
    )


def dump(value: Any, *, sort_keys: bool = False) -> str:
    """JSON, with null for numbers that are not finite: JSON has none of these, and strict readers refuse them."""
    return json.dumps(_plain(value), indent=2, sort_keys=sort_keys)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else finite(value)
