"""What a run leaves for people: snapshots of held-out pairs while it trains, then summary.png and report.html."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipjax.report.figures import draw_projection, draw_similarity, training_summary
from clipjax.report.held_out import HeldOut
from clipjax.report.page import step_of_page, write_report
from clipjax.report.pictures import pixels_of
from clipjax.report.projection import plane_of
from clipjax.report.run_data import read_run
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.snapshots import (
    FOLDER,
    PAIRS,
    PREDICTIONS,
    drop_snapshots,
    read_document,
    read_snapshots,
    write_document,
    write_snapshot,
)

SUMMARY, REPORT = "summary.png", "report.html"
SHOWN = 8  # pairs in pictures
Show = Callable[[str, int, np.ndarray], None]  # (name, step, [H, W, 3] uint8), to TensorBoard
Look = Callable[[int, np.ndarray, np.ndarray], None]  # (step, image, text embeddings [n, D] float32)


class Recorder:
    """Writes a run's snapshots and, at its end, its pictures. All processes call its methods together.

    held_out: None for a run without evaluators, which has curves only. show: takes pictures for TensorBoard.
    resume_step: snapshots beyond it are dropped first, so that a resumed run has a single history. look: takes what is
    embedded, on the first process.
    """

    def __init__(
        self,
        workdir: Path,
        held_out: HeldOut | None,
        show: Show,
        resume_step: int,
        look: Look = lambda step, image, text: None,
    ):
        self.workdir, self.held_out, self.show, self.look = workdir, held_out, show, look
        self.first = jax.process_index() == 0
        if self.first:
            drop_snapshots(workdir, resume_step)
            if held_out:
                write_document(workdir, PAIRS, held_out.pairs)

    def record(self, variables: Any, step: int) -> None:
        """Stores the held-out pairs as these weights embed them."""
        if not self.held_out:
            return
        snapshot = self.held_out.snapshot(variables, step)
        if self.first and len(snapshot.image):
            write_snapshot(self.workdir, snapshot, self.held_out.pairs["id"])
            self.look(step, snapshot.image, snapshot.text)
            rows = some_pairs(len(snapshot.image))
            entries = [self.held_out.pairs["pairs"][row] for row in rows]
            picture = draw_similarity(snapshot.similarity[np.ix_(rows, rows)], entries)
            self.show("held_out/similarity", step, picture)

    def finish(self, variables: Any, step: int) -> None:
        """Writes what the last weights predict, summary.png and report.html, and prints where they are."""
        predictions = self.held_out.predictions(variables, step) if self.held_out else None
        if not self.first:
            return
        if predictions:
            write_document(self.workdir, PREDICTIONS, predictions)
            self.show_projections()
        draw_summary(self.workdir)
        write_report(self.workdir / REPORT, [read_run(self.workdir)])
        print(f"Wrote {self.workdir / REPORT}", flush=True)

    def show_projections(self) -> None:
        """Draws every snapshot on the plane of the last one, for TensorBoard."""
        snapshots = read_snapshots(self.workdir, self.held_out.pairs["id"])
        if not snapshots:
            return
        plane = plane_of(snapshots)
        points = [(plane.project(found.image), plane.project(found.text)) for found in snapshots]
        limit = float(np.nan_to_num(np.abs(points)).max()) or 1.0
        for found, (image, text) in zip(snapshots, points, strict=True):
            self.show("held_out/projection", found.step, draw_projection(image, text, plane.share, limit))


def draw_summary(workdir: Path) -> None:
    """Writes workdir/summary.png from the run's metrics and its first and last snapshot; nothing without snapshots."""
    pairs = read_document(workdir, PAIRS)
    snapshots = read_snapshots(workdir, pairs["id"]) if pairs else []
    if not snapshots or not len(snapshots[0].image):
        return
    metrics = read_metrics(workdir)
    rows = some_pairs(len(snapshots[0].image))
    entries = [pairs["pairs"][row] for row in rows]
    training_summary(
        workdir / SUMMARY,
        curve=[line for line in metrics if "loss" in line],
        similarity_before=snapshots[0].similarity[np.ix_(rows, rows)],
        similarity_after=snapshots[-1].similarity[np.ix_(rows, rows)],
        captions=[entry["caption"] for entry in entries],
        images=[pixels_of(entry["image"]) for entry in entries],
        zero_shot_before=_zero_shot(metrics, snapshots[0].step),
        zero_shot_after=_zero_shot(metrics, snapshots[-1].step),
        first_step=snapshots[0].step,
    )
    print(f"Wrote {workdir / SUMMARY}", flush=True)


def some_pairs(count: int, shown: int = SHOWN) -> np.ndarray:
    """The rows, spread over all pairs, that a picture shows."""
    return np.unique(np.linspace(0, count - 1, min(shown, count)).astype(int)) if count else np.zeros(0, int)


def lacks_report(workdir: Path, step: int) -> bool:
    """Whether the report of a run that is finished at this step is still to be made, because it was killed before.

    A report may be there from before the run was extended.
    """
    if not (workdir / FOLDER).exists():
        return False
    return not (workdir / REPORT).exists() or (step_of_page(workdir / REPORT) or step) < step


def _zero_shot(metrics: list[dict[str, float]], step: int) -> dict[str, float]:
    """The metrics at a step of the first evaluator that reports top1, without its name; {} if none does."""
    line = {key: value for line in metrics if line["step"] == step for key, value in line.items()}
    name = next((key.removesuffix("/top1") for key in line if key.endswith("/top1")), None)
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)}
