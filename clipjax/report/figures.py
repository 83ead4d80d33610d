"""Pictures of a run, drawn from plain data and written atomically."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.atomic import replacing

BLUE, GREY, ORANGE = "#2b6cb0", "#a0aec0", "#c05621"


def training_summary(
    path: str | Path,
    *,
    curve: Sequence[dict[str, float]],
    similarity_before: np.ndarray,
    similarity_after: np.ndarray,
    captions: Sequence[str],
    images: np.ndarray,
    zero_shot_before: dict[str, float],
    zero_shot_after: dict[str, float],
) -> None:
    """One PNG: the loss curve, similarities of held-out pairs and zero-shot accuracy, before and after training.

    curve: metric lines with "step" and "loss". similarity_*: [n, n] cosines, image by text.
    images: [n, H, W, 3] uint8, captions: n, both in the matrices' order.
    zero_shot_*: with "top1", and where known "top5" and "chance"; empty: the panel says so.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.9])
    curve_axes, bars_axes = top.subplots(1, 2, width_ratios=[2, 1])
    _draw_curve(curve_axes, curve)
    _draw_zero_shot(bars_axes, zero_shot_before, zero_shot_after)
    limit = max(float(np.abs(m).max()) for m in (similarity_before, similarity_after))
    left, right = bottom.subfigures(1, 2)
    _draw_similarity(left, "Before training", similarity_before, captions, images, limit)
    _draw_similarity(right, "After training", similarity_after, captions, images, limit)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _draw_curve(axes: Any, curve: Sequence[dict[str, float]]) -> None:
    axes.plot([line["step"] for line in curve], [line["loss"] for line in curve], color=BLUE, linewidth=1.8)
    axes.set(title="Training loss", xlabel="step", ylabel="loss")
    if curve and min(line["loss"] for line in curve) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_zero_shot(axes: Any, before: dict[str, float], after: dict[str, float]) -> None:
    metrics = [m for m in ("top1", "top5") if m in before and m in after]
    axes.set_title("Held-out zero-shot accuracy")
    if not metrics:
        axes.text(0.5, 0.5, "no zero-shot evaluator", ha="center", va="center", color=GREY)
        axes.axis("off")
        return
    for offset, label, values, color in ((-0.2, "before", before, GREY), (0.2, "after", after, BLUE)):
        shares = [values[m] for m in metrics]
        bars = axes.bar(np.arange(len(metrics)) + offset, shares, 0.38, label=label, color=color)
        axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=2)
    if "chance" in after:
        axes.axhline(after["chance"], color=ORANGE, linestyle="--", linewidth=1, label=f"chance {after['chance']:.2%}")
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_ylim(0, 1.12)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_similarity(figure: Any, title: str, matrix: np.ndarray, captions: Any, images: np.ndarray, limit: float):
    n = len(matrix)
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(n + 1, 2, width_ratios=[1, n], gridspec_kw={"height_ratios": [1] * n + [0.9]})
    for row in range(n):
        grid[row, 0].imshow(images[row])
        grid[row, 0].axis("off")
        grid[row, 1].remove()
    grid[n, 0].axis("off")
    grid[n, 1].remove()
    axes = figure.add_subplot(grid[0, 1].get_gridspec()[:n, 1])
    axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for i in range(n):
        for j in range(n):
            color = "white" if abs(matrix[i, j]) > 0.6 * limit else "black"
            weight = "bold" if i == j else "normal"
            axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=8, color=color, weight=weight)
    axes.set_yticks([])
    labels = ["\n".join(textwrap.wrap(caption, 14)[:5]) for caption in captions]
    axes.set_xticks(range(n), labels, fontsize=7)
