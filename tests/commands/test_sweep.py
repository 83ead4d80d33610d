"""clipjax sweep: the grid that --vary gives, what is refused before a cell begins, and cells that end in every way."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clipjax.commands import launch, sweep
from clipjax.commands.launch import Task
from clipjax.commands.sweep_check import errors_elsewhere
from clipjax.commands.vary import build_settings, parse_axes, parse_seeds
from clipjax.config import ConfigError, to_json_dict
from clipjax.config.metrics import smaller_is_better
from clipjax.runs.lock import RunLockError, folder_lock, run_lock
from clipjax.runs.own_files import keep_files
from clipjax.runs.sweep import Cell, cell_name, read_sweep, short_names
from tests.runs import ROOT, build_data, write_experiment
from tests.tiny import tiny_config

EXPERIMENT = """
from clipjax.config import ExperimentConfig
from tests.tiny import tiny_config

def get_config(loss="sigmoid"):
    return tiny_config(loss=loss)
"""
# A stand-in for clipjax train: makes the last checkpoint's folder, fails at batch 64, waits for a signal at batch 128.
TRAINER = """
import json, signal, sys, time
from pathlib import Path

given = dict(arg.split("=", 1) for arg in sys.argv[2:])
workdir, batch_size = Path(given["--workdir"]), int(given["--config.global_batch_size"])
config = json.loads(Path(__file__).with_name("config.json").read_text())
config |= {"global_batch_size": batch_size, "seed": int(given["--config.seed"])}
(workdir / "config.json").write_text(json.dumps(config))
if batch_size == 64 and not (workdir.parent / "mended").exists():
    print("Traceback of something", flush=True)
    sys.exit("error: the disk of batch 64 is full")
if batch_size == 128 and not (workdir / "checkpoints" / "7").exists():
    def stop(*_):
        (workdir / "checkpoints" / "7").mkdir(parents=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    (workdir / "ready").touch()
    time.sleep(60)
(workdir / "checkpoints" / str(config["total_steps"])).mkdir(parents=True)
"""


@pytest.fixture
def experiment(tmp_path) -> str:
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    return f"--config={tmp_path / 'experiment.py'}"


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Cells run the stand-in, and are not checked by a process of its own."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "config.json").write_text(json.dumps(to_json_dict(tiny_config())))
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, str(tmp_path / "trainer.py")))
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sweep, "errors_here", lambda cells: {})


def settings_of(experiment: str, *vary: str) -> list[dict]:
    return [setting.values for setting in build_settings(experiment, [], parse_axes(vary, []))]


def statuses(folder: Path) -> dict[str, str]:
    return {cell.path: cell.status for cell in read_sweep(folder).cells}


def test_two_varied_fields_give_their_product_in_order(experiment):
    assert settings_of(experiment, "loss.name=softmax,sigmoid", "global_batch_size=8,16") == [
        {"loss.name": loss, "global_batch_size": size} for loss in ("softmax", "sigmoid") for size in (8, 16)
    ]


def test_fields_joined_by_commas_change_together(experiment):
    assert settings_of(experiment, "global_batch_size,optimizer.learning_rate=8:1e-3,16:2e-3") == [
        {"global_batch_size": 8, "optimizer.learning_rate": 0.001},
        {"global_batch_size": 16, "optimizer.learning_rate": 0.002},
    ]


def test_values_are_read_by_the_fields_type(experiment):
    vary = (
        "data.augment.scale=(0.5,1.0),(0.9,1)",
        "model.logit_bias_init=none,-10",
        "log.tensorboard=true,false",
        "init_from='runs/a,b:c',''",
    )
    first, *_, last = settings_of(experiment, *vary)
    assert first == {
        "data.augment.scale": [0.5, 1.0],
        "model.logit_bias_init": None,
        "log.tensorboard": True,
        "init_from": "runs/a,b:c",
    }
    assert last == {
        "data.augment.scale": [0.9, 1.0],
        "model.logit_bias_init": -10.0,
        "log.tensorboard": False,
        "init_from": "",
    }


def test_a_dash_leaves_out_a_field_that_another_loss_has(experiment):
    assert settings_of(experiment, "loss.name,loss.in_modal_weight=softmax:-,cyclip:0.1,cyclip:0.5") == [
        {"loss.name": "softmax"},
        {"loss.name": "cyclip", "loss.in_modal_weight": 0.1},
        {"loss.name": "cyclip", "loss.in_modal_weight": 0.5},
    ]


def test_a_field_that_only_some_losses_have_is_refused_with_the_vary_to_use(experiment):
    with pytest.raises(ConfigError, match="'softmax' has no such field, 'cyclip' has") as error:
        settings_of(experiment, "loss.name=softmax,cyclip", "loss.in_modal_weight=0.1,0.5")
    assert '--vary "loss.name,loss.in_modal_weight=softmax:-,cyclip:0.1,cyclip:0.5"' in str(error.value)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("loss.nam=softmax", "no such field config.loss.nam"),
        ("loss.name=softmax,sigmd", "config.loss.name='sigmd' is unknown. Did you mean 'sigmoid'"),
        ("global_batch_size=16,many", "--config.global_batch_size=many: expected a whole number"),
        ("global_batch_size=16,0", "config.global_batch_size=0 must be at least 1"),
        ("global_batch_size=16,1.5", "--config.global_batch_size=1.5: expected a whole number"),
        ("global_batch_size=16,,32", "a value is empty"),
        ("global_batch_size=", "a value is empty"),
        ("global_batch_size", "expected FIELD=VALUE,VALUE"),
        ("=16", "a field's name is empty"),
        ("global_batch_size=16,16", "gives a value twice"),
        ("optimizer.learning_rate=1e-3,0.001", "gives the same setting twice"),
        ("global_batch_size,optimizer.learning_rate=16:1e-3,32", "'32' has 1 value(s) for the 2 fields"),
        ("data.augment.scale=0.5,1.0", "write each choice in brackets"),
        ("data.augment.scale=(0.5,1.0", ") is missing at the end"),
        ("loss=softmax,sigmoid", "config.loss is a section; set its fields one by one"),
        ("seed=1,2", "--seeds sets config.seed"),
        ("model.image.dropout=0.1,nan", "config.model.image.dropout=nan must be"),
    ],
)
def test_a_wrong_vary_is_refused_before_anything_begins(experiment, tmp_path, vary, message):
    with pytest.raises(ConfigError) as error:
        sweep.run([experiment], [vary], tmp_path / "sweep")
    assert message in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_all_wrong_values_are_told_at_once(experiment):
    with pytest.raises(ConfigError, match="2 errors in the grid") as error:
        settings_of(experiment, "global_batch_size=8,0,-3")
    assert "=0 must" in str(error.value) and "=-3 must" in str(error.value)


def test_a_field_may_not_be_varied_and_set_or_varied_twice():
    with pytest.raises(ConfigError, match="contradict each other"):
        parse_axes(["loss.name=a,b"], ["--config.loss.name=c"])
    with pytest.raises(ConfigError, match="given twice"):
        parse_axes(["loss.name=a,b", "loss.name=c"], [])
    with pytest.raises(ConfigError, match="config.seed is set by --seeds"):
        parse_axes([], ["--config.seed=3"])


def test_seeds_are_a_number_of_them_or_themselves():
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("5,8") == [5, 8]
    assert parse_seeds("7,") == [7]
    for text in ("0", "-1", "", "x", "1.5", "1,1", ",2", "99999999999", "1,99999999999"):
        with pytest.raises(ConfigError, match="--seeds="):
            parse_seeds(text)


def test_a_cells_folder_has_a_name_to_read_and_to_type():
    fields = ["loss.name", "optimizer.learning_rate", "model.image.width", "model.text.width"]
    assert list(short_names(fields).values()) == ["loss", "learning_rate", "image.width", "text.width"]
    values = {"loss.name": "softmax", "optimizer.learning_rate": 1e-5, "model.image.width": 64}
    assert cell_name(values, fields) == "loss=softmax,learning_rate=1e-05,image.width=64"
    assert cell_name({"data.augment.scale": [0.5, 1.0]}, ["data.augment.scale"]) == "scale=0.5-1"
    assert cell_name({"init_from": "/a b/../c"}, ["init_from"], {"init_from=a-b-..-c"}) == "init_from=a-b-..-c-2"
    assert cell_name({}, []) == "default"
    assert len(cell_name({"init_from": "x" * 500}, ["init_from"])) <= 120


def test_a_failed_cell_is_told_and_the_rest_go_on_and_the_same_command_tries_it_again(
    experiment, trainer, tmp_path, capfd
):
    arguments = [experiment], ["global_batch_size=64,8,16"], tmp_path / "sweep"
    assert sweep.run(*arguments, seeds="2") == 1
    shown = capfd.readouterr().out
    folder = tmp_path / "sweep" / "global_batch_size=64"
    assert "failed: global_batch_size=64/seed1: the disk of batch 64 is full\n" in shown
    assert f"    log: {folder}/seed1/train.log" in shown
    assert "4 finished, 2 not" in shown
    assert list(statuses(tmp_path / "sweep").values()) == ["failed", "finished", "finished"] * 2
    assert "Traceback of something" in (folder / "seed0" / "train.log").read_text()

    (folder / "mended").touch()
    before = (tmp_path / "sweep/global_batch_size=8/seed0/train.log").read_text()
    assert sweep.run(*arguments, seeds="2") == 0
    shown = capfd.readouterr().out
    assert "4 finished, 2 to train" in shown
    assert set(statuses(tmp_path / "sweep").values()) == {"finished"}
    assert (tmp_path / "sweep/global_batch_size=8/seed0/train.log").read_text() == before


def test_more_values_and_seeds_extend_a_sweep(experiment, trainer, tmp_path, capfd):
    folder = tmp_path / "sweep"
    assert sweep.run([experiment], ["global_batch_size=8"], folder) == 0
    assert sweep.run([experiment], ["global_batch_size=16,8"], folder, seeds="2", jobs=3) == 0
    assert "1 finished, 3 to train, 3 at a time" in capfd.readouterr().out
    assert list(statuses(folder)) == [f"global_batch_size={size}/seed{seed}" for seed in (0, 1) for size in (8, 16)]
    document = json.loads((folder / "sweep.json").read_text())
    assert document["grid"] == {"global_batch_size": [8, 16]} and document["seeds"] == [0, 1]
    assert sweep.run([experiment], ["global_batch_size=32"], folder) == 0
    assert "4 other cells of earlier commands stay" in capfd.readouterr().out
    assert len(statuses(folder)) == 5


def test_what_contradicts_a_sweep_is_refused_before_anything_begins(experiment, trainer, tmp_path):
    folder = tmp_path / "sweep"
    assert sweep.run([experiment], ["global_batch_size=8"], folder) == 0
    before = (folder / "sweep.json").read_text()
    with pytest.raises(ConfigError, match="varies global_batch_size, and this command varies loss.name"):
        sweep.run([experiment], ["loss.name=softmax"], folder)
    with pytest.raises(ConfigError, match="total_steps=20, config.total_steps is now 30"):
        sweep.run([experiment, "--config.total_steps=30"], ["global_batch_size=8,16"], folder)
    assert (folder / "sweep.json").read_text() == before
    assert sweep.run([experiment, "--config.log.every_steps=7"], ["global_batch_size=8,16"], folder) == 0


def test_more_seeds_on_other_data_or_evaluators_are_refused_before_anything_begins(experiment, trainer, tmp_path):
    folder, arguments = tmp_path / "sweep", ["global_batch_size=8"]
    document = to_json_dict(tiny_config())
    document["data"]["train"]["path"] = "data/a"
    (tmp_path / "config.json").write_text(json.dumps(document))
    base = [experiment, "--config.data.train.path=data/a"]
    assert sweep.run(base, arguments, folder) == 0
    other = [experiment, "--config.data.train.path=data/b"]
    with pytest.raises(ConfigError, match="data.train.path='data/a', config.data.train.path is now 'data/b'"):
        sweep.run(other, arguments, folder, seeds="2")
    file = tmp_path / "experiment.py"
    file.write_text(
        EXPERIMENT.replace("return tiny_config(loss=loss)", "config = tiny_config(loss=loss)")
        + "    evaluation = dataclasses.replace(config.eval, evaluators={'found': clipjax.eval.RetrievalConfig()})\n"
        + "    return dataclasses.replace(config, eval=evaluation)\n"
    )
    file.write_text("import dataclasses\nimport clipjax.eval\n" + file.read_text())
    with pytest.raises(ConfigError, match="config.eval.evaluators.found.name is now 'retrieval'"):
        sweep.run(base, arguments, folder, seeds="2")
    file.write_text(EXPERIMENT)
    assert list(statuses(folder)) == ["global_batch_size=8/seed0"]
    same = [experiment, f"--config.data.train.path={Path.cwd() / 'data/a'}"]
    assert sweep.run(same, arguments, folder, seeds="2") == 0


def test_a_tokenizer_is_compared_by_its_content(experiment, trainer, tmp_path):
    folder, vocabulary = tmp_path / "sweep", tmp_path / "words.txt"
    vocabulary.write_text("one")
    arguments = [experiment, f"--config.tokenizer.path={vocabulary}"], ["global_batch_size=8"], folder
    config = tiny_config()
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=str(vocabulary)))
    kept = keep_files(config, folder / "global_batch_size=8" / "seed0").config
    (tmp_path / "config.json").write_text(json.dumps(to_json_dict(kept)))
    assert sweep.run(*arguments) == 0
    assert sweep.run(*arguments, seeds="2") == 0
    vocabulary.write_text("another")
    with pytest.raises(ConfigError, match=r"tokenizer.path='tokenizer/\w+/words.txt', config.tokenizer.path is now"):
        sweep.run(*arguments, seeds="3")
    vocabulary.unlink()  # the cells read their own copies
    assert sweep.run(*arguments, seeds="2") == 0


def test_a_sweep_of_which_no_cell_has_begun_may_be_another(experiment, trainer, tmp_path, capfd):
    sweep.run([experiment], ["loss.name=softmax,sigmoid"], tmp_path / "sweep", launch="print")
    assert sweep.run([experiment], ["global_batch_size=8"], tmp_path / "sweep") == 0
    assert list(statuses(tmp_path / "sweep")) == ["global_batch_size=8/seed0"]


def test_a_signal_lets_the_running_cell_save_and_the_same_command_goes_on(experiment, trainer, tmp_path, capfd):
    # SIGTERM, because a test run that was started in the background ignores SIGINT, and so does a sweep then.
    folder = tmp_path / "sweep"
    ready = folder / "global_batch_size=128" / "seed0" / "ready"

    def interrupt():
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    arguments = [experiment], ["global_batch_size=8,128,16"], folder
    assert sweep.run(*arguments) == 128 + signal.SIGTERM
    shown = capfd.readouterr().out
    assert "global_batch_size=128/seed0: stopped, saved at step 7" in shown
    assert "Stopped with 2 cells unfinished. The same command goes on from here." in shown
    assert list(statuses(folder).values()) == ["finished", "stopped", "waiting"]
    assert sweep.run(*arguments) == 0
    assert "global_batch_size=128/seed0: goes on at step 7" in capfd.readouterr().out


def test_cells_do_not_read_a_file_that_was_edited_while_the_sweep_ran(
    experiment, trainer, tmp_path, capfd, monkeypatch
):
    file, folder, start = tmp_path / "experiment.py", tmp_path / "sweep", launch.Local._start
    before = file.read_text()

    def edit_after(self, task):
        start(self, task)
        file.write_text(before + "# edited\n")

    monkeypatch.setattr(launch.Local, "_start", edit_after)
    assert sweep.run([experiment], ["global_batch_size=8,16,32"], folder) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1 and "experiment.py was edited while the sweep ran: 2 cells would train" in errors
    assert list(statuses(folder).values()) == ["finished", "waiting", "waiting"]
    monkeypatch.setattr(launch.Local, "_start", start)
    file.write_text(before)
    assert sweep.run([experiment], ["global_batch_size=8,16,32"], folder) == 0


def test_the_eta_is_that_of_cells_as_long_and_knows_that_a_start_takes_time(tmp_path):
    cells = [Task(Cell("x", seed, {}, {}), 1, tmp_path, [], images, 1) for seed, images in enumerate((100, 300, 500))]
    local = launch.Local(cells, 5, 1, lambda: None, lambda: False)
    assert local.eta() is None
    local.done = [(100, 10.0), (100, 12.0)]
    assert local.eta() == pytest.approx(11 + 22 + 33)
    local.done = [(100, 10.0), (100, 12.0), (300, 15.0)]
    assert local.eta() == pytest.approx(11 + 15 + 19)
    local.jobs = 2
    assert local.eta() == pytest.approx(45 / 2)


def test_the_time_of_a_cell_whose_sweep_was_killed_is_unknown_and_stays_so(experiment, trainer, tmp_path):
    arguments = [experiment], ["global_batch_size=8,16"], tmp_path / "sweep"
    assert sweep.run(*arguments) == 0
    assert all(cell.seconds > 0 for cell in read_sweep(tmp_path / "sweep").cells)
    path = tmp_path / "sweep" / "sweep.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "running"', 1))
    shutil.rmtree(tmp_path / "sweep/global_batch_size=8/seed0/checkpoints")
    assert sweep.run(*arguments) == 0
    assert [cell.seconds > 0 for cell in read_sweep(tmp_path / "sweep").cells] == [False, True]


def test_two_sweeps_in_one_folder_are_refused(experiment, trainer, tmp_path):
    with (
        folder_lock(tmp_path / "sweep", "sweep.lock", user="sweep", harm="", keeps=""),
        pytest.raises(RunLockError, match="in use by another sweep"),
    ):
        sweep.run([experiment], ["global_batch_size=8"], tmp_path / "sweep")


def test_a_cell_that_another_run_holds_waits_for_its_end_while_others_are_trained(experiment, trainer, tmp_path, capfd):
    folder, held = tmp_path / "sweep", contextlib.ExitStack()
    held.enter_context(run_lock(folder / "global_batch_size=8" / "seed0"))

    def let_go():
        while not (folder / "global_batch_size=16" / "seed0" / "checkpoints" / "20").exists():
            time.sleep(0.02)
        held.close()

    threading.Thread(target=let_go, daemon=True).start()
    assert sweep.run([experiment], ["global_batch_size=8,16"], folder) == 0
    shown = capfd.readouterr().out
    assert shown.index("=8/seed0: waits for the end of another run in it: {") < shown.index("=16/seed0: finished")
    assert shown.index("=16/seed0: finished") < shown.index("=8/seed0: finished")


def test_a_runs_folder_is_no_sweeps_folder(experiment, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a run's folder"):
        sweep.run([experiment], ["global_batch_size=8"], tmp_path / "run")


def test_print_gives_one_command_per_cell_and_nothing_else(experiment, tmp_path, capsys):
    vary = ["data.augment.scale=(0.5,1.0),(0.9,1.0)"]
    assert sweep.run([experiment, "--config.total_steps=9"], vary, tmp_path / "s w", launch="print", seeds="2") == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 4
    assert shown.out.splitlines()[0] == (
        f"clipjax train {experiment} --config.total_steps=9 '--config.data.augment.scale=(0.5,1.0)' --config.seed=0 "
        f"'--workdir={tmp_path}/s w/scale=0.5-1/seed0'"
    )
    assert "same data in the same order" in shown.err


def test_slurm_gets_one_job_per_cell_and_no_second_one_while_it_is_queued(experiment, tmp_path, monkeypatch, capsys):
    programs = {
        "sbatch": 'echo "$@" >> "$LOG"; n=$(wc -l < "$LOG"); [ "$n" -gt 3 ] && { echo "no quota" >&2; exit 1; }; '
        'echo "10$n;cluster"',
        "squeue": "echo 102",
    }
    for name, script in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "calls"))
    arguments = [experiment], ["global_batch_size=8,16"], tmp_path / "sweep"
    options = dict(launch="slurm", sbatch="--gres=gpu:1 --time=2:00:00")
    assert sweep.run(*arguments, **options) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2 and "--gres=gpu:1 --time=2:00:00 --wrap=exec " in calls[0]
    assert f"--output={tmp_path}/sweep/global_batch_size=8/seed0/train.log" in calls[0]
    assert "-m clipjax train" in calls[0] and "--config.global_batch_size=8 --config.seed=0" in calls[0]
    assert [cell.job for cell in read_sweep(tmp_path / "sweep").cells] == ["101", "102"]

    assert sweep.run(*arguments, **options) == 0  # 102 is queued still, 101 is gone without an end
    assert "global_batch_size=16/seed0: still queued or running as job 102" in capsys.readouterr().out
    assert [cell.job for cell in read_sweep(tmp_path / "sweep").cells] == ["103", "102"]
    with pytest.raises(ConfigError, match="sbatch refused global_batch_size=8/seed0 .*no quota"):
        sweep.run(*arguments, **options)


def test_what_no_machine_can_run_is_refused_without_its_devices():
    assert not errors_elsewhere(tiny_config(mesh=(4, 2, 1)))
    errors = errors_elsewhere(tiny_config(mesh=(3, 1, 1)))
    assert "config.global_batch_size=16 does not divide" in errors[0] and "config.eval.batch_size=256" in errors[1]


def test_the_check_of_the_cells_tells_which_cell_is_wrong_and_starts_none(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "errors_here", lambda cells: {next(iter(cells)): ["the tokenizer is missing"]})
    with pytest.raises(ConfigError, match="1 error; no cell was started:\n1. .*global_batch_size=8/seed0: the tokeni"):
        sweep.run([experiment], ["global_batch_size=8,16"], tmp_path / "sweep", seeds="2")
    assert not (tmp_path / "sweep" / "sweep.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs=0"], "--jobs=0 must be at least 1"),
        (["--launch=slurmm"], "--launch=slurmm is unknown; expected local, print, slurm"),
        (["--sbatch=--time=1"], "it goes with --launch=slurm"),
        (["--seeds=none"], "--seeds=none: expected a number of seeds"),
    ],
)
def test_a_wrong_flag_is_one_line(experiment, tmp_path, flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main(["sweep", experiment, f"--workdir={tmp_path / 'sweep'}", *flags])
    assert end.value.code == 1
    assert message in capsys.readouterr().err


def test_ranks_losses_and_gaps_are_better_when_smaller():
    for metric in ("r/image_to_text_median_rank", "x/mean_rank", "loss", "x/ece", "modality_gap", "calibration_error"):
        assert smaller_is_better(metric)
    for metric in ("r/image_to_text_r1", "x/top1", "x/effective_rank", "images_per_second", "x/frank", "x/map"):
        assert not smaller_is_better(metric)


@pytest.mark.slow
def test_a_sweep_of_real_runs_is_checked_trained_and_skipped_when_finished(tmp_path):
    build_data(tmp_path)
    command = [
        sys.executable, "-m", "clipjax", "sweep", f"--config={write_experiment(tmp_path)}", "--config.total_steps=3",
        "--config.eval.every_steps=0", "--vary=loss.name=softmax,sigmoid", f"--workdir={tmp_path / 'sweep'}",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    wrong = subprocess.run(
        [*command, "--config.tokenizer.path=none"], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 1 and "no cell was started" in wrong.stderr
    for shown in ("All cells are finished", "2 finished, 0 to train"):
        right = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert right.returncode == 0 and shown in right.stdout, right.stdout + right.stderr
