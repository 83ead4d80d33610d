"""What real runs leave: one history of snapshots over restarts, and a report that can be made again."""

import shutil

import numpy as np
import pytest

from clipjax.commands import report, train
from clipjax.config import from_config_dict
from clipjax.report import read_run
from tests.runs import build_data, run_config


def config_of(folder, **changes):
    config = run_config(folder)
    config.log.update(figures=True, tensorboard=True)
    config.update(changes)
    return from_config_dict(config)


@pytest.mark.slow
def test_a_restarted_run_has_one_history_and_its_report_can_be_made_again(tmp_path, capsys):
    build_data(tmp_path)
    workdir = tmp_path / "run"
    train.run(config_of(tmp_path, total_steps=6), workdir)
    assert f"Wrote {workdir / 'report.html'}" in capsys.readouterr().out.splitlines()
    train.run(config_of(tmp_path), workdir)
    found = read_run(workdir)
    assert [s.step for s in found.snapshots] == [0, 6, 12] and found.predictions["step"] == 12
    assert len(found.snapshots[0].image) == len(found.pairs["pairs"]) <= 26
    np.testing.assert_allclose(np.linalg.norm(found.snapshots[-1].image, axis=1), 1, atol=1e-3)
    assert found.missing == {} and set(found.results) == {"zero_shot", "retrieval"}
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").iterdir())
    assert events.count(b"held_out/similarity") >= 3 and events.count(b"held_out/projection") >= 2

    # The predictions of the checkpoint are those of the run, and without data the page says what it lacks.
    shutil.rmtree(workdir / "snapshots")
    opened = report.with_predictions(read_run(workdir), None, "latest")
    assert opened.predictions["step"] == 12 and [s.step for s in opened.snapshots] == [12]
    own, again = (p["classification"]["samples"][0] for p in (found.predictions, opened.predictions))
    assert own["label"] == again["label"]
    np.testing.assert_allclose([b[1] for b in own["bars"]], [b[1] for b in again["bars"]], atol=1e-4)
    shutil.rmtree(tmp_path / "scenes")
    without = report.with_predictions(read_run(workdir), None, "latest")
    assert "No predictions could be made of the checkpoint" in without.missing["predictions"]
    assert "config.eval.evaluators" in without.missing["predictions"]


@pytest.mark.slow
def test_a_run_without_evaluators_has_curves_only(tmp_path):
    build_data(tmp_path)
    config = run_config(tmp_path)
    config.log.figures = True
    config.total_steps = 3
    config.eval.evaluators = {}
    train.run(from_config_dict(config), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="curve-0"' in page and "No held-out pairs are stored" in page and "No evaluation is stored" in page
    report.run([tmp_path / "run"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "There are no predictions, because the configuration has no evaluators" in page
