"""The loop around the steps: which weights it hands on, and that the last steps are looked at as well."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.config import EvalConfig, ExperimentConfig
from clipjax.training.loop import TrainingError, headline, loop
from clipjax.training.profile import Profiler
from clipjax.training.state import TrainState

VALUES = {"loss": 1.0, "logit_scale": 1.0, "learning_rate": 1.0}
ZERO = np.int32(0)
STATE = TrainState(ZERO, {"w": 1.0}, (), {"w": 2.0}, jax.random.key(0), ZERO, ZERO, ema_batch_stats={})


def run(config, tmp_path, first_bad):
    """(the steps that were saved, the weights handed on); steps from first_bad on are skipped."""
    saved, handed = [], []

    def step(state, batch):
        n = int(state.step) + 1
        bad = max(0, n - first_bad + 1)
        return replace(state, step=np.int32(n)), VALUES | {"skipped": bad, "skipped_in_a_row": bad}

    loop(
        config,
        STATE,
        step,
        iter([({}, {}, 0.0)] * config.total_steps),
        evaluate=lambda state: {},
        evaluated=lambda variables, step: handed.append(variables["params"]["w"]),
        save=lambda state, **_: saved.append(int(state.step)),
        log=lambda *_: None,
        step_done=lambda step: None,
        profiler=Profiler(config, tmp_path),
        data_metrics=lambda *_: {},
    )
    return saved, handed


def experiment(**changed):
    optimizer = replace(ExperimentConfig().optimizer, max_nonfinite_steps=4)
    return replace(ExperimentConfig(total_steps=10, optimizer=optimizer), **changed)


@pytest.mark.parametrize("first_bad", [1, 3, 6, 7])
def test_too_many_steps_that_are_not_finite_stop_a_run_wherever_they_are(tmp_path, first_bad):
    with pytest.raises(TrainingError):
        run(experiment(), tmp_path, first_bad)


def test_fewer_of_them_do_not(tmp_path):
    assert run(experiment(), tmp_path, first_bad=8)[0] == [10]


@pytest.mark.parametrize(("weights", "expected"), [("average", 2.0), ("both", 2.0), ("raw", 1.0)])
def test_pictures_and_the_report_show_the_weights_that_are_evaluated(tmp_path, weights, expected):
    assert run(experiment(eval=EvalConfig(weights=weights)), tmp_path, first_bad=11)[1] == [expected]


def test_the_line_about_an_evaluation_says_something_of_each_evaluator():
    results = {"zoo/top1": 0.5, "zoo/top1_low": 0.4, "zoo/top5": 1.0, "zoo/examples": 8.0}
    results |= {"probe/lp_acc1": 0.25, "probe/lp_acc1_low": 0.2, "health/alignment": 0.75, "health/modality_gap": 0.5}
    assert headline(results) == "zoo/top1 50.0%  zoo/top5 100.0%  probe/lp_acc1 25.0%  health/alignment 0.75"
    assert headline({}) == ""
