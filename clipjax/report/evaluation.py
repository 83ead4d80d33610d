"""An evaluation as files: results.json for programs, report.html for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipjax.config import to_json_dict
from clipjax.files import write_text
from clipjax.inference.evaluate import Evaluation
from clipjax.models import patch_budget
from clipjax.report.html import write_html
from clipjax.runs import Run


def results_document(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """What results.json holds."""
    config = evaluation.config
    budget = patch_budget(config.model.image)
    return {
        "checkpoint": str(run.directory),
        "step": run.step,
        "results": evaluation.results,
        "fingerprint": run.fingerprint,
        "eval": to_json_dict(config)["eval"],
        "mesh": dict(evaluation.mesh.shape),
        **({"max_patches": budget.max_patches} if budget else {}),
        "seconds": round(evaluation.seconds, 2),
    }


def write_report(out: Path, run: Run, evaluation: Evaluation, document: dict[str, Any]) -> None:
    """Writes out/results.json, which holds `document`, and out/report.html."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "results.json", json.dumps(document, indent=2, sort_keys=True))
    write_html(
        out / "report.html",
        title=f"{run.directory}, step {run.step}",
        results=evaluation.results,
        config=to_json_dict(evaluation.config),
        notes={
            "fingerprint": run.fingerprint,
            "mesh": dict(evaluation.mesh.shape),
            "bad records replaced in training": run.bad_causes or "none",
        },
    )
