"""A run in a bucket: the same numbers as in a folder, to the bit, whatever ends it, and nothing lost."""

import dataclasses
import itertools
import json
import random
import signal
import time

import jax
import numpy as np
import pytest
from absl import logging

from clipjax.commands import eval as evaluate
from clipjax.commands import export, report, train
from clipjax.config import ConfigError, MeshConfig, from_config_dict
from clipjax.data.tokenizers import make_tokenizer
from clipjax.mesh import make_mesh
from clipjax.runs import RunLockError, fingerprint, integrity, open_run, read_metrics, run_lock, spool
from clipjax.runs import stored_files as stored_files_module
from clipjax.runs.goodput import read_lines
from clipjax.runs.integrity import CheckpointError, damage_of, newest_intact, set_aside_damaged
from clipjax.runs.steps import MARKER, checkpoints_of, remove_unfinished, whole_steps
from clipjax.runs.stored_files import stored_files
from clipjax.runs.weights import check_init_from
from clipjax.storage import StorageError, as_path, write_bytes
from tests import runs
from tests.ports import free_port
from tests.storage.servers import BUCKETS, objects


@pytest.fixture(params=sorted(BUCKETS), scope="module")
def bucket(request):
    with BUCKETS[request.param]() as url:
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment")
    runs.build_data(path)
    runs.write_experiment(path)
    return path


@pytest.fixture(scope="module")
def config(folder):
    """Six steps, with a checkpoint and an evaluation at 3 and 6."""
    config = runs.run_config(folder)
    config.update(total_steps=6)
    config.eval.every_steps = 3
    del config.eval.evaluators["zero_shot"]
    config.log.tensorboard = True
    return from_config_dict(config)


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """The runs of this module share one program."""
    made, make = {}, train.compile_step

    def compile_step(config, mesh, teacher):
        key = repr((config.model, config.optimizer, config.loss, config.total_steps, config.lora))
        if key not in made:
            made[key] = make(config, mesh, teacher)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "compile_step", compile_step)
        yield


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A user's cache of this test's own, as on a machine that has seen no run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(folder, config):
    """The workdir, in a folder, of the run that nothing ended early."""
    train.run(config, folder / "whole")
    evaluate.run(folder / "whole")
    return folder / "whole"


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines


def state_of(workdir):
    with open_run(workdir) as run:
        return jax.tree.map(np.asarray, run.state(make_mesh(MeshConfig(data=1), jax.devices()[:1])))


def own_fingerprint(config):
    return fingerprint(config, make_tokenizer(config.tokenizer, config.model.text.context_length))


def curve(workdir):
    """metrics.jsonl without what depends on the machine's time and memory."""
    kept = ("step", "loss", "grad", "param", "logit", "retrieval", "skipped", "learning_rate", "bad_records", "epoch")
    return [{k: v for k, v in line.items() if k.startswith(kept)} for line in read_metrics(workdir)]


def equal(found, expected):
    assert curve(found) == curve(expected)
    jax.tree.map(np.testing.assert_array_equal, state_of(found), state_of(expected))


class Killed(BaseException):
    """Ends a run with nothing more written, as kill -9 does."""


def kill_after(monkeypatch, step):
    """Makes the next run end as by kill -9 once `step` steps are done."""
    write = train.BadRecordsLog.write

    def end(log, done):
        write(log, done)
        if done == step:
            raise Killed

    monkeypatch.setattr(train.BadRecordsLog, "write", end)
    monkeypatch.setattr(spool, "_try", lambda *_: None)


@pytest.fixture(scope="module")
def killed(bucket, config, tmp_path_factory):
    """A run in the bucket that was killed after step 5, and has the checkpoint of step 3."""
    workdir = f"{bucket}/runs/a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("machine")))
        kill_after(patch, 5)
        with pytest.raises(Killed):
            train.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def finished(killed, config, tmp_path_factory):
    """That run, continued to its end on another machine."""
    assert whole_steps(checkpoints_of(killed)) == [3]
    assert [line["step"] for line in read_metrics(killed)][-1] >= 3  # uploaded with the checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(other := tmp_path_factory.mktemp("other_machine")))
        train.run(config, killed)
    assert not list(other.rglob("metrics.jsonl")), "what is in the bucket is not kept twice"
    return killed


numbers = itertools.count()


@pytest.fixture
def copied(bucket, finished):
    """A copy of the finished run's checkpoints, to be harmed."""
    name = f"{bucket}/{next(numbers)}"
    for source, data in objects(f"{finished}/checkpoints").items():
        write_bytes(f"{name}/{source.removeprefix('runs/a/')}", data)
    return as_path(name)


def test_a_run_killed_and_continued_on_another_machine_equals_the_one_in_a_folder(finished, whole):
    equal(finished, whole)
    assert [line["start"] for line in read_lines(finished) if "from" in line] == [1, 2]
    assert len(list(as_path(finished).glob("tensorboard/*tfevents*"))) == 2


def test_it_is_evaluated_and_reported_where_it_is(bucket, finished, whole):
    expected = json.loads((whole / "eval/6/results.json").read_text())["results"]
    assert evaluate.run(finished)["results"] == expected
    assert json.loads((as_path(finished) / "eval/6/results.json").read_text())["results"] == expected
    assert str(report.run([finished], compute=False)) == f"{finished}/report.html"
    assert "Loss" in (as_path(finished) / "report.html").read_text()


def test_its_weights_start_another_run(finished, whole, config):
    mesh = make_mesh(MeshConfig())
    line = check_init_from(dataclasses.replace(config, init_from=finished), mesh, own_fingerprint(config))
    assert f"from {finished}, step 6" in line
    with open_run(finished) as run, open_run(whole) as expected:
        jax.tree.map(np.testing.assert_array_equal, run.variables(mesh), expected.variables(mesh))


def test_it_is_exported_from_the_bucket_into_the_bucket(bucket, finished, whole, tmp_path):
    for source, target in ((finished, f"{bucket}/exported"), (whole, tmp_path / "exported")):
        export.run(source, target, format="hf", tokenizer=False)
    exported = {name.removeprefix("exported/"): data for name, data in objects(f"{bucket}/exported").items()}
    assert exported == {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()}


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip_a_bit, cut, lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_found_and_moved_whole(copied, harm, warnings):
    step = copied / "checkpoints/6"
    name = max((name for name in stored_files(step) if name.startswith("train/")), key=lambda n: stored_files(step)[n])
    assert not damage_of(step)
    harm(step / name)
    before = {name: file.md5 for name, file in stored_files(step).items()}
    set_aside_damaged(copied)
    assert whole_steps(checkpoints_of(copied)) == [3]
    assert {name: file.md5 for name, file in stored_files(copied / "damaged_checkpoints/6").items()} == before
    assert str(step / name) in warnings[0] and "going on from 3" in warnings[0]


def test_a_checkpoint_without_its_marker_is_not_used_and_is_removed_or_told_of(copied, warnings):
    six = copied / "checkpoints/6"
    (six / MARKER).unlink()
    assert whole_steps(checkpoints_of(copied)) == [3] and newest_intact(copied) == (3, {})
    with open_run(copied) as run:
        assert run.step == 3
    with pytest.raises(CheckpointError, match=r"no checkpoint '6'; it has the steps \[3\]"), open_run(copied, "6"):
        pass
    remove_unfinished(checkpoints_of(copied))
    assert stored_files(six) and f"{six} has no {MARKER}" in warnings[-1]  # all else says that it is whole
    (copied / "checkpoints/3" / MARKER).unlink()
    with pytest.raises(CheckpointError, match=f"No checkpoint .*6 has no {MARKER}. If it is whole, write an empty"):
        newest_intact(copied)
    stamps = json.loads((six / "_CHECKPOINT_METADATA").read_text())
    (six / "_CHECKPOINT_METADATA").write_text(json.dumps(stamps | {"commit_timestamp_nsecs": None}))
    remove_unfinished(checkpoints_of(copied))
    assert not stored_files(six) and stored_files(copied / "checkpoints/3")


def test_an_unfinished_checkpoint_that_was_copied_to_a_folder_is_no_checkpoint_there_either(copied, tmp_path):
    for name in stored_files(copied / "checkpoints/6"):
        if name != MARKER:
            (tmp_path / "6" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "6" / name).write_bytes((copied / "checkpoints/6" / name).read_bytes())
    assert not damage_of(tmp_path / "6")  # its checksums are MD5s, which are compared by reading
    flip_a_bit(tmp_path / "6/meta/metadata")
    assert damage_of(tmp_path / "6") == [f"{tmp_path}/6/meta/metadata: its MD5 is not the one that was written"]
    stamps = json.loads((tmp_path / "6/_CHECKPOINT_METADATA").read_text())
    (tmp_path / "6/_CHECKPOINT_METADATA").write_text(json.dumps(stamps | {"commit_timestamp_nsecs": None}))
    assert "never finished" in damage_of(tmp_path / "6")[0]


def test_another_runs_bucket_and_no_bucket_are_refused_before_compiling_and_nothing_changes(
    bucket, finished, config, monkeypatch
):
    monkeypatch.setattr(train, "compile_step", lambda *_: pytest.fail("compiled"))
    before = {name: data for name, data in objects(bucket).items() if "run.lock" not in name}
    with pytest.raises(ConfigError, match="seed"):
        train.run(dataclasses.replace(config, seed=7, total_steps=9), finished)
    with pytest.raises(CheckpointError, match="inside a run"):
        train.run(config, f"{finished}/checkpoints/6")
    assert {name: data for name, data in objects(bucket).items() if "run.lock" not in name} == before
    with pytest.raises((StorageError, RunLockError), match="there is no bucket"):
        train.run(config, f"{bucket}-none/run")


def test_an_intact_checkpoint_is_known_by_the_buckets_checksums_without_reading_its_arrays(finished, monkeypatch):
    monkeypatch.setattr(integrity, "digest", lambda *_: pytest.fail("read"))
    assert newest_intact(finished) == (6, {})


def test_a_tag_that_is_no_md5_is_not_taken_for_one(bucket, finished, monkeypatch):
    if not bucket.startswith("s3"):
        pytest.skip("Google Cloud Storage names its MD5s")
    step = checkpoints_of(finished) / "6"
    assert all(file.md5 for file in stored_files(step).values())
    monkeypatch.setattr(stored_files_module, "_md5", lambda info: "0" * 32)  # as of objects encrypted by own keys
    assert not any(file.md5 for file in stored_files(step).values())
    assert not damage_of(step), "then the objects are read"


def test_two_runs_share_a_workdir_in_a_bucket_no_more_than_a_folder(bucket, config, monkeypatch):
    with run_lock(f"{bucket}/held"), pytest.raises(RunLockError, match="in use"):
        train.run(config, f"{bucket}/held")


def start_training(folder, workdir, *, processes):
    run = [f"--config={folder}/experiment.py", f"--workdir={workdir}"]
    cluster = [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
    return [
        runs.start("train", *run, *cluster, f"--process_id={index}", devices=4 // processes)
        for index in range(processes)
    ]


def finish(processes):
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_killed_with_kill_9_and_started_on_other_machines_give_the_folders_bits(
    bucket, folder, tmp_path, monkeypatch
):
    local, workdir = folder / "local", f"{bucket}/killed"
    if not local.exists():
        finish(start_training(folder, local, processes=2))
    running = start_training(folder, workdir, processes=2)
    step = random.randint(3, 10)
    for line in running[0].stdout:
        if line.startswith(f"step {step:2}/"):
            break
    time.sleep(random.random())
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other_machine"))
    output = finish(start_training(folder, workdir, processes=2))[0]
    assert "Restored step" in output or not step > 6, output
    equal(workdir, local)
