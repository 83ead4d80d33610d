"""Whole runs: stopped in every way and resumed, run on several processes, evaluated on another mesh."""

import dataclasses
import json
import math
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from clipjax.commands import eval as evaluate
from clipjax.commands import train
from clipjax.config import ConfigError, MeshConfig, from_config_dict
from clipjax.inference.evaluate import numbers_of
from clipjax.mesh import make_mesh
from clipjax.runs import open_run
from clipjax.runs.fingerprint import FingerprintError
from clipjax.runs.integrity import CheckpointError
from clipjax.training.loop import TrainingError
from tests import runs
from tests.ports import free_port

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment")
    runs.build_data(path)
    runs.write_experiment(path)
    return path


@pytest.fixture(scope="module")
def config(folder):
    return from_config_dict(runs.run_config(folder))


@pytest.fixture(scope="module")
def uninterrupted(folder, config):
    """(workdir, final results) of the run that all others are compared with."""
    workdir = folder / "uninterrupted"
    return workdir, train.run(config, workdir)


def start_training(folder, workdir, *extra, devices=8):
    return runs.start("train", f"--config={folder}/experiment.py", f"--workdir={workdir}", *extra, devices=devices)


def wait_for_step(process, workdir, step, seconds=240):
    """Returns once metrics.jsonl shows the step; fails with the run's output if it ends earlier."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and max(runs.losses(workdir), default=0) >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"step {step} not reached in {seconds} s: {process.stdout.read()}")


def test_kill_9_at_a_random_step_and_restart_gives_the_uninterrupted_losses_to_the_bit(folder, config, uninterrupted):
    workdir = folder / "killed"
    process = start_training(folder, workdir)
    wait_for_step(process, workdir, random.randint(4, 11))
    process.send_signal(signal.SIGKILL)
    process.wait()
    results = train.run(config, workdir)
    assert runs.losses(workdir) == runs.losses(uninterrupted[0])
    assert results == uninterrupted[1]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == sorted(["3", "6", "9", "12"])


def test_sigterm_saves_the_step_says_so_and_the_restart_goes_on(folder, config, uninterrupted):
    workdir = folder / "preempted"
    process = start_training(folder, workdir, "--config.checkpoint.every_steps=1000")
    wait_for_step(process, workdir, 4)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert len(steps) == 1
    assert f"SIGTERM: saved step {steps[0]}" in output
    train.run(config, workdir)
    assert runs.losses(workdir) == runs.losses(uninterrupted[0])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
def test_several_processes_give_the_one_process_losses(folder, uninterrupted, count):
    workdir = folder / f"{count}_processes"
    port = free_port()
    processes = [
        start_training(folder, workdir, f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}",
                       f"--process_id={i}", devices=8 // count)
        for i in range(count)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    found, expected = runs.losses(workdir), runs.losses(uninterrupted[0])
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    # The checkpoint has the data states of all processes, and one process can read it.
    with open_run(workdir) as run:
        assert [state["step"] for state in run.data_states] == [12] * count
    assert evaluate.run(workdir, out=workdir / "evaluated")["results"].keys() == {"zero_shot", "retrieval"}


def run_up_to_step_6(uninterrupted, workdir):
    """A workdir as the uninterrupted run would have left it if killed right after its checkpoint of step 6."""
    shutil.copytree(uninterrupted[0] / "checkpoints" / "6", workdir / "checkpoints" / "6")
    return workdir


def test_a_checkpoint_goes_on_under_another_layout(folder, config, uninterrupted):
    workdir = run_up_to_step_6(uninterrupted, folder / "layout")
    train.run(dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=4, tensor=2)), workdir)
    found, expected = runs.losses(workdir), runs.losses(uninterrupted[0])
    assert list(found) == list(range(7, 13))
    np.testing.assert_allclose([found[s] for s in found], [expected[s] for s in found], rtol=1e-4)


def test_restoring_on_another_mesh_gives_the_same_parameters_to_the_bit(uninterrupted):
    trees = []
    with open_run(uninterrupted[0]) as run:
        for shape in ((8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 4), (1, 2, 1), (1, 1, 1)):
            mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
            trees.append(jax.tree.map(np.asarray, run.variables(mesh)))
    for tree in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, trees[0], tree)


def test_eval_command_gives_the_results_of_the_run_on_one_device(folder, uninterrupted):
    workdir, results = uninterrupted
    process = runs.start("eval", f"--checkpoint={workdir}", f"--out={folder}/out", devices=1)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    document = json.loads((folder / "out" / "results.json").read_text())
    assert document["step"] == 12
    assert document["results"]["retrieval"]["examples"] == 26, "the last, partial batch counts"
    found = numbers_of(document["results"])
    assert found == pytest.approx(results, abs=1e-6)
    assert "zero_shot" in output
    assert "<table" in (folder / "out" / "report.html").read_text()


def test_an_older_and_the_best_checkpoint_can_be_named(folder, uninterrupted):
    assert evaluate.run(uninterrupted[0], step="6", out=folder / "six")["step"] == 6
    with pytest.raises(CheckpointError, match=r"no checkpoint '7'; it has the steps \[3, 6, 9, 12\]"):
        evaluate.run(uninterrupted[0], step="7")
    with pytest.raises(CheckpointError, match="takes the --workdir of a training run"):
        evaluate.run(folder / "nowhere")


def test_settings_that_change_what_weights_mean_are_refused_field_by_field(folder, config, uninterrupted):
    pixels = dataclasses.replace(config.data.pixels, mean=(0.4, 0.4, 0.4))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, pixels=pixels))
    with pytest.raises(FingerprintError, match=r"pixels.mean: checkpoint \[0.5, 0.5, 0.5\], configuration \[0.4"):
        evaluate.run(uninterrupted[0], config=other)
    with pytest.raises(FingerprintError, match="pixels.mean"):
        train.run(other, uninterrupted[0])


def test_another_seed_or_batch_in_the_same_workdir_is_refused(config, uninterrupted):
    with pytest.raises(ConfigError, match="seed=0, config.seed is now 1"):
        train.run(dataclasses.replace(config, seed=1), uninterrupted[0])


def test_another_model_in_the_same_workdir_is_refused_naming_the_field(config, uninterrupted):
    text = dataclasses.replace(config.model.text, mlp_dim=32)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
    with pytest.raises(FingerprintError, match="text.mlp_dim: checkpoint 64, configuration 32"):
        train.run(other, uninterrupted[0])


def test_averages_that_begin_in_the_same_workdir_are_refused(config, uninterrupted):
    averaged = dataclasses.replace(config.optimizer, ema_decay=0.9)
    with pytest.raises(ConfigError, match="ema_decay is now 0.9: averages are kept from the first step on"):
        train.run(dataclasses.replace(config, optimizer=averaged), uninterrupted[0])


def test_a_run_of_non_finite_losses_stops_with_an_intact_checkpoint(folder, config, uninterrupted):
    workdir = run_up_to_step_6(uninterrupted, folder / "nan")
    # A decay of 10,000 times the weights at each step soon leaves float32.
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e4, weight_decay=1.0, max_nonfinite_steps=3)
    schedule = dataclasses.replace(optimizer.schedule, name="constant")
    bad = dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, schedule=schedule), total_steps=60)
    bad = dataclasses.replace(bad, checkpoint=dataclasses.replace(config.checkpoint, every_steps=1000))
    with pytest.raises(TrainingError, match="3 steps in a row.*last checkpoint is intact"):
        train.run(bad, workdir)
    with open_run(workdir) as run:
        assert run.step == 6
        variables = run.variables(make_mesh(config.mesh))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_a_best_metric_nobody_reports_is_refused_at_the_start(folder, config):
    wrong = dataclasses.replace(config.checkpoint, best_metric="retrieval/r1")
    with pytest.raises(ConfigError, match="best_metric='retrieval/r1' is not reported. Did you mean 'retrieval/"):
        train.run(dataclasses.replace(config, checkpoint=wrong), folder / "wrong_metric")


def test_best_checkpoint_outlives_the_last_ones(folder, config):
    workdir = folder / "best"
    kept = dataclasses.replace(
        config.checkpoint, every_steps=2, keep_last=1, keep_best=1, best_metric="retrieval/image_to_text_r10"
    )
    every = dataclasses.replace(config.eval, every_steps=2)
    train.run(dataclasses.replace(config, checkpoint=kept, eval=every), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line[kept.best_metric] for line in lines if kept.best_metric in line and line["step"]}
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert 12 in steps
    assert len(steps) <= 2
    assert max(scores[step] for step in steps) == max(scores.values())
    with open_run(workdir, "best") as run:
        assert scores[run.step] == max(scores.values())
