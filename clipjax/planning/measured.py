"""Steps that were measured on a card, beside what a plan said of them: benchmarks/results/gpu_step_*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipjax.files import TextFileError, read_text
from clipjax.planning.accelerator import Chip

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"  # in the project's folder; not installed


def measured_steps(chip: Chip | None, results: Path = RESULTS) -> list[dict[str, Any]]:
    """The steps of clipjax that `python -m benchmarks.gpu_step` measured on this kind of card, with their plans.

    Each has model, loss, batch, milliseconds, planned_milliseconds and file. Files that are not there, or not such
    results, count as none.
    """
    found = []
    for path in sorted(results.glob("gpu_step_*.json")) if chip else []:
        try:
            document = json.loads(read_text(path))
            cells = document["cells"] if document["card"]["name"] == chip.device_kind else []
            names = ("model", "loss", "batch", "milliseconds", "planned_milliseconds")
            steps = [cell for cell in cells if cell["contender"] == "clipjax" and all(cell.get(name) for name in names)]
            found += [{name: step[name] for name in names} | {"file": path.name} for step in steps]
        except (OSError, TextFileError, ValueError, KeyError, TypeError):
            continue
    return found
