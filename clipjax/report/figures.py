"""Pictures of a run, drawn from plain data and written atomically."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.files import replacing
from clipjax.report.pictures import pixels_of
from clipjax.report.table import rows

BLUE, GREY, ORANGE, INK = "#2b6cb0", "#a0aec0", "#c05621", "#1f2733"
WIDTH, HEIGHT, DPI = 16, 10, 100  # inches, pixels an inch
SMOOTH_FROM = 40  # points; a shorter curve is not smoothed


def training_summary(
    path: str | Path,
    *,
    curve: Sequence[dict[str, float]],
    similarity_before: np.ndarray,
    similarity_after: np.ndarray,
    captions: Sequence[str],
    images: Sequence[np.ndarray],
    zero_shot_before: dict[str, float],
    zero_shot_after: dict[str, float],
    first_step: int = 0,
) -> None:
    """One PNG of 1600 x 1000: loss curve, similarities of held-out pairs and zero-shot accuracy, before and after.

    curve: metric lines with "step" and "loss". similarity_*: [n, n] cosines, image by text.
    images: n of [H, W, 3] uint8, and n captions, both in the matrices' order.
    zero_shot_*: what clipjax.eval.zero_shot returns, or at least "top1"; if empty, the panel says so.
    first_step: that of what is called "before", which is the untrained model only at 0.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GREY}
    with rc_context({**style, "axes.titlesize": 13, "axes.titlepad": 10, "font.size": 10}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.75])
        curve_axes, bars_axes = top.subplots(1, 2, width_ratios=[1.7, 1])
        _draw_curve(curve_axes, curve)
        earlier = f"step {first_step}" if first_step else "before training"
        _draw_zero_shot(bars_axes, zero_shot_before, zero_shot_after, earlier)
        limit = max(float(np.nan_to_num(np.abs(m)).max()) for m in (similarity_before, similarity_after)) or 1.0
        left, right = bottom.subplots(1, 2)
        _draw_similarity(left, earlier.capitalize(), similarity_before, captions, images, limit)
        _draw_similarity(right, "After training", similarity_after, captions, images, limit)
        bottom.supxlabel("Cosine of each held-out image with each caption; outlined: the true pairs.", fontsize=10)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")


def draw_similarity(matrix: np.ndarray, entries: Sequence[dict[str, str]]) -> np.ndarray:
    """[H, W, 3] uint8: the cosines of held-out pairs, for TensorBoard.

    matrix: [n, n], image by text. entries: n of {"caption", "image"} with a thumbnail each.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.4), dpi=DPI, layout="constrained")
    images, captions = [pixels_of(entry["image"]) for entry in entries], [entry["caption"] for entry in entries]
    limit = float(np.nan_to_num(np.abs(matrix)).max(initial=0)) or 1.0
    _draw_similarity(figure.subplots(), "Held-out pairs", matrix, captions, images, limit)
    return _pixels(figure)


def draw_projection(image: np.ndarray, text: np.ndarray, share: np.ndarray, limit: float) -> np.ndarray:
    """[H, W, 3] uint8: held-out pairs on a plane of the embedding space, for TensorBoard.

    image, text: [n, 2] coordinates of the pairs. share: [2], of the variance. limit: the axes' ends.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for a, b in zip(image, text, strict=True):
        axes.plot([a[0], b[0]], [a[1], b[1]], color=GREY, linewidth=0.8, zorder=1)
    axes.scatter(*image.T, color=BLUE, s=24, label="images", zorder=2)
    axes.scatter(*text.T, color=ORANGE, s=24, marker="D", label="captions", zorder=2)
    ends = (-1.08 * limit, 1.08 * limit)
    labels = [f"component {i + 1} ({part:.0%} of the variance)" for i, part in enumerate(share)]
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel=labels[0], ylabel=labels[1])
    axes.set_title("Held-out pairs on the plane of the last evaluation")
    axes.legend(frameon=False, loc="upper right")
    return _pixels(figure)


def _pixels(figure: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_curve(axes: Any, curve: Sequence[dict[str, float]]) -> None:
    steps = np.array([line["step"] for line in curve], float)
    loss = np.array([line["loss"] for line in curve], float)
    axes.set(title="Training loss", xlabel="step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    finite = np.isfinite(loss)
    steps, loss = steps[finite], loss[finite]
    if not len(loss):
        axes.text(0.5, 0.5, "no loss was logged", ha="center", va="center", color=GREY, transform=axes.transAxes)
        return
    smooth = running_mean(loss) if len(loss) >= SMOOTH_FROM else loss
    if smooth is not loss:
        axes.plot(steps, loss, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(steps, smooth, color=BLUE, linewidth=2, marker="o" if len(loss) == 1 else None)
    if loss.min() > 0 and loss.max() > 10 * loss.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "235" else "")
        axes.set_ylabel("loss (logarithmic)")
    else:
        axes.set_ylabel("loss")
    label = f"{smooth[-1]:.3g}"
    axes.annotate(label, (steps[-1], smooth[-1]), (6, 0), textcoords="offset points", va="center", color=BLUE)


def running_mean(values: np.ndarray) -> np.ndarray:
    """[n] -> [n]: the mean over a twentieth of the curve around each point, and over less at its ends."""
    window = max(1, len(values) // 20)
    weight = np.convolve(np.ones_like(values), np.ones(window), mode="same")
    return np.convolve(values, np.ones(window), mode="same") / weight


def _draw_zero_shot(axes: Any, before: dict[str, float], after: dict[str, float], earlier: str) -> None:
    shown = {row.metric: row for row in rows(after) if row.metric in ("top1", "top5") and row.metric in before}
    if not shown:
        axes.set_title("Held-out zero-shot accuracy")
        axes.text(0.5, 0.5, "no zero-shot evaluator", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.axis("off")
        return
    nouns = {"examples": "images", "classes": "names"}
    counts = [f"{int(after[name]):,} {noun}" for name, noun in nouns.items() if name in after]
    axes.set_title("Held-out zero-shot accuracy" + (f"  ({', '.join(counts)})" if counts else ""))
    for x, (metric, row) in enumerate(shown.items()):
        for offset, label, value, color in ((-0.2, earlier, before[metric], GREY), (0.2, "after", row.value, BLUE)):
            top = value
            axes.bar(x + offset, value, 0.38, color=color, label=label)
            if label == "after" and row.interval is not None:
                axes.vlines(x + offset, *row.interval, color=INK, linewidth=1.5, label="95% interval")
                top = row.interval[1]
            above = dict(xytext=(0, 4), textcoords="offset points", ha="center", fontsize=11)
            axes.annotate(f"{value:.1%}", (x + offset, top), **above)
        if row.chance is not None:
            axes.hlines(row.chance, x - 0.45, x + 0.45, color=ORANGE, linestyle="--", linewidth=1.5, label="chance")
    labels = [m + (f"\nchance {r.chance:.2%}" if r.chance is not None else "") for m, r in shown.items()]
    axes.set_xticks(range(len(shown)), labels, fontsize=11)
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 1.18), xlim=(-0.6, len(shown) - 0.4), yticks=np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.25, axis="y")
    axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    of_name = dict(zip(names, handles, strict=True))
    names = [name for name in (earlier, "after", "chance", "95% interval") if name in of_name]
    axes.legend([of_name[name] for name in names], names, loc="upper left", frameon=False, ncols=4, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_similarity(
    axes: Any, title: str, matrix: np.ndarray, captions: Sequence[str], images: Sequence[np.ndarray], limit: float
) -> None:
    from matplotlib.patches import Rectangle

    n = len(matrix)
    others = np.where(np.eye(n, dtype=bool), -np.inf, matrix)
    own = int(np.sum(np.diag(matrix) > others.max(axis=1)))
    axes.set_title(f"{title}: {own} of {n} images are nearest to their own caption")
    axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for i in range(n):
        for j in range(n):
            color = "white" if abs(matrix[i, j]) > 0.6 * limit else INK
            weight = "bold" if i == j else "normal"
            axes.text(
                j,
                i,
                f"{round(float(matrix[i, j]), 2) + 0.0:.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color=color,
                weight=weight,
            )
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=2, clip_on=False))
        thumbnail = axes.inset_axes((-1.5, i - 0.46, 0.92, 0.92), transform=axes.transData)
        thumbnail.imshow(images[i], interpolation="nearest" if images[i].shape[0] < 64 else "antialiased")
        thumbnail.set(xticks=[], yticks=[])
        thumbnail.spines[:].set_color("#e2e8f0")
    axes.set_yticks([])
    width = max(8, 96 // n)
    labels = ["\n".join(textwrap.wrap(caption, width, max_lines=5, placeholder=" …")) for caption in captions]
    axes.set_xticks(range(n), labels, fontsize=8, parse_math=False)  # a caption's "$" is no mathematics
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
