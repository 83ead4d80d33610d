"""What the advisor has said about a run: advice.jsonl, which restarts and the report read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipjax.config import ExperimentConfig
from clipjax.files import write_text
from clipjax.json_files import read_json_lines
from clipjax.processes import announce
from clipjax.runs.metrics_log import read_metrics
from clipjax.storage import as_path
from clipjax.training.advisor import Advice, Advisor

FILE = "advice.jsonl"


class AdviceLog:
    """Shows each line of the log to the advisor, on the first process; prints and keeps what it says.

    Made before MetricsLog drops lines. resume_step: 0: the run begins, and nothing was said before. evidence: see
    Advisor.
    """

    def __init__(
        self, config: ExperimentConfig, workdir: Path, resume_step: int, evidence: Callable[[], list[str]] = lambda: []
    ):
        self.path, self.said = workdir / FILE, []
        self.advisor: Advisor | None = None
        if jax.process_index() != 0:
            return
        self.said = read_advice(workdir) if resume_step else []
        self.advisor = Advisor(config, {advice["cause"] for advice in self.said}, evidence)
        for line in read_metrics(workdir):
            if line["step"] <= resume_step:
                self.advisor.remember(line["step"], line)
        if not resume_step and self.path.is_file():
            write_text(self.path, "")

    def write(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl."""
        if self.advisor:
            self._keep(self.advisor.look(step, values))

    def embeddings(self, step: int, image: np.ndarray, text: np.ndarray) -> None:
        """Held-out pairs as the weights of a step embed them, [n, D] float32."""
        if self.advisor:
            self._keep(self.advisor.look_at_embeddings(step, image, text))

    def _keep(self, found: list[Advice]) -> None:
        for advice in found:
            announce(f"advice: {advice.text}")
            self.said.append(advice._asdict())
        if found:
            write_text(self.path, "".join(json.dumps(advice, ensure_ascii=False) + "\n" for advice in self.said))


def read_advice(workdir: str | Path) -> list[dict[str, Any]]:
    """[{"cause": ..., "step": ..., "text": ...}, ...] in the order in which it was said."""
    lines = read_json_lines(as_path(workdir) / FILE, ("cause", "step", "text"))
    return [line for line in lines if isinstance(line["text"], str) and type(line["step"]) is int]
