"""Figures are what Plotly takes, in JSON without NaN, and say what the numbers are."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from clipjax.report import plots
from clipjax.runs.snapshots import Snapshot
from tests.report.fake_run import NASTY, pairs_at, picture


def checked(figure):
    """The figure, if Plotly knows all its fields and JSON all its values."""
    json.dumps(figure, allow_nan=False)
    go.Figure(figure)
    return figure


def lines(steps, **metrics):
    return [{"step": step, **{name: f(step) for name, f in metrics.items()}} for step in steps]


def test_runs_are_overlaid_in_one_figure_for_each_metric():
    a = lines(range(1, 60), loss=lambda s: 5 / s, learning_rate=lambda s: s)
    b = lines(range(1, 5), loss=lambda s: float("nan") if s == 2 else s)
    charts = {chart["title"]: chart for chart in plots.curves({"a": a, "b<b>": b, "empty": []})}
    assert [chart["group"] for chart in charts.values()] == ["training", "training"]
    for chart in charts.values():
        checked(chart["figure"])
    raw, smooth, other = charts["Loss"]["figure"]["data"][:3]
    assert raw["hoverinfo"] == "skip" and raw["line"]["color"] == smooth["line"]["color"] == plots.colour(0)
    assert other["y"] == [1, None, 3, 4] and other["line"]["color"] == plots.colour(1)
    assert "b&lt;b&gt;" in other["hovertemplate"]
    assert charts["Loss"]["figure"]["layout"]["yaxis"]["type"] == "log"


def test_evaluators_show_their_accuracies_first_or_else_their_first_numbers():
    run = lines(
        [0, 10], **{f"zoo/{m}": lambda s: 0.5 for m in ("top1", "top1_low", "top5", "chance")},
        **{f"health/{m}": lambda s: 2.0 for m in ("alignment", "uniformity", "gap", "rank")},
        **{"pairs/median_rank": lambda s: 3.0, "bad_records/truncated": lambda s: 1.0},
    )  # fmt: skip
    shown = {chart["title"]: chart["group"] for chart in plots.curves({"a": run})}
    assert {title for title, group in shown.items() if group == "evaluation"} == {
        "zoo · top1", "zoo · top5", "health · alignment", "health · uniformity", "health · gap", "pairs · median_rank",
    }  # fmt: skip
    assert shown["bad_records/truncated"] == "more"


def test_a_long_curve_is_thinned_by_means_of_its_numbers():
    run = lines(range(4 * plots.MOST_POINTS), seconds=lambda s: float("nan") if s % 4 == 0 else s)
    (chart,) = plots.curves({"a": run})
    trace = checked(chart["figure"])["data"][0]
    assert len(trace["x"]) == plots.MOST_POINTS and trace["x"][0] == 1.5 and trace["y"][0] == 2


def test_frames_show_every_step_on_one_plane_and_the_same_pairs_in_the_matrix():
    snapshots = [pairs_at(step, 40) for step in range(0, 300, 2)]
    frames = plots.frames(snapshots)
    json.dumps(frames, allow_nan=False)
    assert len(frames["steps"]) == plots.MOST_STEPS and frames["steps"][0] == 0 and frames["steps"][-1] == 298
    assert np.shape(frames["image"]) == (plots.MOST_STEPS, 40, 2)
    assert np.shape(frames["similarity"]) == (plots.MOST_STEPS, plots.CELLS, plots.CELLS)
    rows = frames["rows"]
    expected = snapshots[-1].similarity[np.ix_(rows, rows)]
    np.testing.assert_allclose(frames["similarity"][-1], expected, atol=1e-3)
    assert np.abs(frames["image"]).max() <= frames["limit"] + 1e-3


def test_embeddings_without_numbers_are_null():
    nan = np.full((3, 4), np.nan, np.float32)
    frames = plots.frames([Snapshot(0, nan, nan, float("nan"))])
    assert frames["image"] == [[[None, None]] * 3] and frames["scales"] == [None] and frames["limit"] == 1.0
    json.dumps(frames, allow_nan=False)


@pytest.mark.parametrize("n", [1, 5, 16])
def test_matrix_and_plane_are_figures_of_plotly(n):
    captions = (NASTY + [f"caption {i}" for i in range(n)])[:n]
    matrix = checked(plots.similarity(captions, [picture(i) for i in range(n)]))
    assert len(matrix["layout"]["images"]) == len(matrix["layout"]["xaxis"]["ticktext"]) == n
    assert np.shape(matrix["data"][0]["customdata"]) == (n, n, 2)
    checked(plots.projection([0.7, 0.1], 2.0, captions))


def test_captions_are_shown_letter_by_letter():
    assert plots.plain("<b>a</b> &lt; %{x}\nb") == "&lt;b&gt;a&lt;/b&gt; &amp;lt; %\u200b{x} b"
    assert plots.wrapped("word " * 100).count("<br>") == 4


@pytest.mark.parametrize(("metric", "share"), [("text_score", True), ("groups", False), ("left_out", False)])
def test_a_count_of_0_or_1_has_no_axis_in_per_cent(metric, share):
    (chart,) = plots.curves({"a": lines([0, 10], **{f"pairs/{metric}": lambda s: float(s > 0)})})
    assert ("tickformat" in chart["figure"]["layout"]["yaxis"]) == share
