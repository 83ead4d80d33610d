"""What people read: the log keeps one curve, pages escape their text, pictures are complete."""

import json

import numpy as np
from PIL import Image

from clipjax.processes import duration
from clipjax.report.figures import training_summary
from clipjax.report.html import write_html
from clipjax.report.run_data import last_results
from clipjax.report.table import format_table
from clipjax.runs.metrics_log import MetricsLog, read_metrics
from clipjax.training.progress import progress_line


def test_a_resumed_log_drops_what_was_written_after_the_checkpoint_and_a_torn_line(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    for step in range(1, 8):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    log = MetricsLog(tmp_path, resume_step=5)
    log.write(6, {"loss": 0.5})
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert read_metrics(tmp_path)[-1]["loss"] == 0.5


def test_a_fresh_run_does_not_keep_another_runs_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "x": 1.0}) + "\n")
    MetricsLog(tmp_path, resume_step=0).close()
    assert read_metrics(tmp_path) == []


def test_progress_line_shows_rate_and_eta_and_what_is_wrong():
    values = {
        "loss": 1.5, "logit_scale": 10.0, "learning_rate": 1e-3, "images_per_second": 1234.5,
        "seconds_per_step": 0.5, "data_wait": 0.0, "skipped": 0.0,
    }  # fmt: skip
    line = progress_line(20, 200, values)
    assert line.startswith("step  20/200  loss 1.5000")
    assert "1,234 images/s" in line
    assert line.endswith("ETA 1m 30s")
    line = progress_line(20, 200, values | {"data_wait": 0.25, "skipped": 2.0})
    assert line.endswith("waiting for data 25%  2 steps skipped")
    assert [duration(s) for s in (7, 65, 3725)] == ["7s", "1m 05s", "1h 02m"]


def test_report_escapes_names_prompts_and_settings(tmp_path):
    nasty = "<script>alert(1)</script>"
    config = {"eval": {"evaluators": {nasty: {"name": "zero_shot", "templates": [nasty], "source": {"path": nasty}}}}}
    write_html(
        tmp_path / "report.html", title=nasty, results={nasty: {"top1": 0.5, nasty: nasty}}, config=config,
        notes={nasty: nasty},
    )  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 7
    assert "50.00%" in page


def test_table_shows_shares_as_per_cent_and_counts_as_numbers():
    table = format_table({"zero_shot": {"top1": 0.123, "examples": 5000}, "retrieval": {"median_rank": 1.0}})
    assert "12.30%" in table
    assert "5,000" in table
    assert table.splitlines()[2].split() == ["retrieval", "median_rank", "1"]


def test_summary_picture_is_written_whole(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "summary.png"
    training_summary(
        path,
        curve=[{"step": s, "loss": 5.0 / s} for s in range(1, 20)],
        similarity_before=rng.normal(size=(4, 4)),
        similarity_after=np.eye(4),
        captions=["a caption of several words, long enough to wrap"] * 4,
        images=rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
        zero_shot_before={"top1": 0.01, "top5": 0.05, "chance": 0.01},
        zero_shot_after={"top1": 0.5, "top5": 0.9, "chance": 0.01},
    )
    with Image.open(path) as image:
        image.load()
        assert image.width >= 1200
    assert [p.name for p in tmp_path.iterdir()] == ["summary.png"]


def test_counts_of_0_and_1_in_the_log_are_shown_as_counts_and_shares_as_shares(tmp_path):
    found = {"top1": 1.0, "unreadable": 0.0, "untrained_classes": 1.0, "short_classes_5shot": 0.0, "groups": 1.0}
    found |= {"examples": 40.0, "loss": float("inf")}
    line = {"step": 4, **{f"pets/{name}": value for name, value in found.items()}}
    results, step = last_results(tmp_path, [line], {"eval": {"evaluators": {"pets": {}}}})
    shown = [row.split()[-1] for row in format_table(results).splitlines()]
    assert (shown, step) == (["100.00%", "0", "1", "0", "1", "40", "inf"], 4)
