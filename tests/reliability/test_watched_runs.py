"""Whole runs with sinks, a watchdog and an advisor: what they leave in the workdir, after failures and restarts."""

import json
import time

import pytest

from clipjax.commands import train
from clipjax.config import from_config_dict
from clipjax.report.page import render_report
from clipjax.report.run_data import read_run
from clipjax.runs.advice import FILE
from clipjax.runs.metrics_log import MetricsLog
from tests.reliability.faulty_commands import quick_step
from tests.reliability.test_sinks import local, mlflow_client, mlflow_history, mlflow_run, wandb_history
from tests.runs import run_config

_ = local  # a fixture


@pytest.fixture
def config(folder, monkeypatch):
    """A run of twelve steps that compiles nothing."""
    monkeypatch.setattr(train, "compile_step", quick_step)
    config = run_config(folder)
    config.eval.evaluators = {}
    return config


@pytest.mark.slow
def test_a_run_that_fails_and_is_started_again_is_one_run_in_wandb_and_mlflow(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    workdir, write = tmp_path / "emoji", MetricsLog.write
    config.log.update(wandb="clip", mlflow="clip", figures=True)

    def fail(self, step, values):
        write(self, step, values)
        if step == 8:
            raise RuntimeError("a driver")

    monkeypatch.setattr(MetricsLog, "write", fail)
    with pytest.raises(RuntimeError, match="a driver"):
        train.run(from_config_dict(config), workdir)
    assert mlflow_run().info.status == "FAILED"
    monkeypatch.setattr(MetricsLog, "write", write)
    train.run(from_config_dict(config), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    history = dict(wandb_history(workdir))
    assert list(history) == list(range(1, 13))
    assert all(history[line["step"]].keys() >= line.keys() - {"step"} for line in lines)
    assert [step for step, _ in mlflow_history("images_per_second")] == list(range(1, 13))
    run = mlflow_run()
    assert run.info.status == "FINISHED" and run.data.params["total_steps"] == "12"
    assert "report.html" in {file.path for file in mlflow_client().list_artifacts(run.info.run_id)}


def test_a_source_that_sleeps_leaves_a_file_with_the_stacks_and_the_run_goes_on(config, tmp_path, monkeypatch, capfd):
    prefetch = train.prefetch_to_mesh

    def sleepy(*args):
        for number, item in enumerate(prefetch(*args), 1):
            while number == 8 and not list(tmp_path.glob("stalls/step_7_*")):
                time.sleep(0.01)
            yield item

    monkeypatch.setattr(train, "prefetch_to_mesh", sleepy)
    monkeypatch.setattr("clipjax.runs.watchdog.POLL_SECONDS", 0.01)
    config.log.watchdog_seconds = 0.5
    train.run(from_config_dict(config), tmp_path)
    (path,) = tmp_path.glob("stalls/step_7_*")
    text = path.read_text()
    assert "waiting for the data of step 8" in text and "in sleepy" in text and "prefetch_to_mesh" in text
    errors = capfd.readouterr().err
    # A busy machine may be slow at other steps too.
    assert errors.count("watchdog: nothing has moved") == len(list(tmp_path.glob("stalls/*")))
    assert not (tmp_path / FILE).exists(), "the advisor had nothing to say"


def test_what_the_advisor_said_is_in_the_report(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 2.0}\n')
    said = {"cause": "no learning", "step": 5, "text": "the towers are <b>not</b> learning"}
    (tmp_path / FILE).write_text(json.dumps(said) + "\n")
    assert "the towers are &lt;b&gt;not&lt;/b&gt; learning" in render_report([read_run(tmp_path)])


def test_a_missing_package_ends_a_run_before_it_compiles_or_writes(config, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else find(name))
    monkeypatch.setattr(train, "compile_step", lambda *_: pytest.fail("compiled"))
    config.log.wandb = "clip"
    with pytest.raises(ValueError, match=r"pip install 'clipjax\[wandb\]'"):
        train.run(from_config_dict(config), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
