"""Checkpoints that are damaged, or could not be written, are named by file, skipped, and never deleted."""

import json
import os
import resource
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest
from absl import logging

from clipjax.commands import eval as evaluate
from clipjax.commands import train
from clipjax.config import ConfigError, MeshConfig
from clipjax.mesh import make_mesh
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs import open_run
from clipjax.runs.integrity import CheckpointError, find_damage, set_aside_damaged, write_checksums
from tests import runs


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines


@pytest.fixture
def workdir(whole, tmp_path):
    """A workdir as a run leaves it that is killed after step 9."""
    for step in ("3", "6", "9"):
        shutil.copytree(whole / "checkpoints" / step, tmp_path / "checkpoints" / step)
    shutil.copy(whole / "metrics.jsonl", tmp_path)
    return tmp_path


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << 3
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def tree_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = {
    "params": lambda step: largest(step / "params"),
    "train": lambda step: largest(step / "train"),
    "meta": lambda step: largest(step / "meta"),
    "tree": lambda step: step / "params" / "_METADATA",
    "orbax": lambda step: step / "_CHECKPOINT_METADATA",
    "checksums": lambda step: step / "checksums.json",
}


@pytest.mark.parametrize("harm", [truncate, flip_one_bit, empty, delete])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_damage_to_every_kind_of_file_is_found_and_named(workdir, warnings, name, harm):
    path = FILES[name](workdir / "checkpoints" / "9")
    harmless = name == "checksums" and harm is delete, name == "orbax" and harm is flip_one_bit
    harm(path)
    set_aside_damaged(workdir)
    found = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    if any(harmless):
        assert found == ["3", "6", "9"]  # no checksum to compare with: the list is gone, or the file is not in it
        return
    assert found == ["3", "6"]
    assert str(path) in warnings[0] and "going on from 6" in warnings[0]


def test_a_missing_meta_is_found_without_checksums_too(workdir, warnings):
    step = workdir / "checkpoints" / "9"
    shutil.rmtree(step / "meta")
    (step / "checksums.json").unlink()
    set_aside_damaged(workdir)
    assert f"{step / 'meta'}: missing" in warnings[0]


@pytest.mark.parametrize("name", ["params", "meta", "tree", "orbax"])
@pytest.mark.parametrize("content", [b"{", b"[" * 5000, b"\xff\0"])
def test_damage_that_no_checksum_tells_is_one_clean_error(workdir, name, content):
    step = workdir / "checkpoints" / "9"
    (step / "checksums.json").unlink()
    for path in (step / "params").rglob("*") if name == "params" else [FILES[name](step)]:
        if path.is_file():
            path.write_bytes(content)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    try:
        with open_run(workdir, step="9") as run:
            run.variables(mesh)
    except (CheckpointError, ConfigError) as error:
        assert str(workdir) in str(error) or "config" in str(error)


def test_damaged_checkpoints_are_moved_whole_and_beside_earlier_ones(workdir, warnings):
    step = workdir / "checkpoints" / "9"
    for name in ("9", "9-1"):
        truncate(largest(step / "params"))
        before = tree_of(step)
        set_aside_damaged(workdir)
        assert tree_of(workdir / "damaged_checkpoints" / name) == before
        shutil.copytree(workdir / "damaged_checkpoints" / "9", step)
    assert len(warnings) == 2


def test_a_run_goes_on_from_the_newest_intact_checkpoint_to_the_same_end(workdir, whole, config, warnings):
    flip_one_bit(largest(workdir / "checkpoints" / "9" / "params"))
    truncate(largest(workdir / "checkpoints" / "6" / "train"))
    train.run(config, workdir)
    assert runs.losses(workdir) == runs.losses(whole)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "3", "6", "9"]
    assert sorted(path.name for path in (workdir / "damaged_checkpoints").iterdir()) == ["6", "9"]
    assert any("its SHA-256 is not the one that was written" in line for line in warnings)


def test_without_an_intact_checkpoint_the_run_stops_and_changes_nothing(workdir, config, monkeypatch):
    monkeypatch.setattr(train, "compile_step", lambda *_: pytest.fail("compiled before the checkpoints were looked at"))
    for step in ("3", "6", "9"):
        empty(largest(workdir / "checkpoints" / step / "meta"))
    before = tree_of(workdir / "checkpoints")
    with pytest.raises(checkpoints.CheckpointError, match=r"(?s)No checkpoint .*/9/meta/.*0 bytes, \d+ were written"):
        train.run(config, workdir)
    assert tree_of(workdir / "checkpoints") == before


def test_evaluation_refuses_damaged_weights_and_does_not_mind_the_training_state(workdir):
    step = workdir / "checkpoints" / "9"
    empty(largest(step / "train"))
    with open_run(workdir) as run:
        assert run.step == 9
    flip_one_bit(largest(step / "params"))
    with pytest.raises(checkpoints.CheckpointError, match=r"(?s)/9 is damaged:.*params.*SHA-256.*\[3, 6, 9\]"):
        evaluate.run(workdir)


def test_files_from_the_future_change_nothing(workdir, whole, config):
    """What a machine with a wrong clock leaves behind."""
    future = time.time() + 10 * 365 * 86_400
    for step, when in (("3", future), ("6", future - 1000), ("9", future - 2000)):
        for path in [workdir / "checkpoints" / step, *(workdir / "checkpoints" / step).rglob("*")]:
            os.utime(path, (when, when))
    os.utime(workdir / "metrics.jsonl", (future, future))
    train.run(config, workdir)
    assert runs.losses(workdir) == runs.losses(whole)
    assert "12" in [path.name for path in (workdir / "checkpoints").iterdir()]


class FullDisk:
    """A file system of a few megabytes, or a limit on the size of files where none may be mounted."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
        try:
            self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.mounted = False

    def fill(self):
        if self.mounted:
            with pytest.raises(OSError, match="No space left"), open(self.folder / "ballast", "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))

    def clear(self):
        (self.folder / "ballast").unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self):
        self.clear()
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_is_told_and_costs_no_earlier_one(whole, config, tmp_path, monkeypatch):
    disk = FullDisk(tmp_path / "disk")
    workdir, save = disk.folder / "run", checkpoints.save

    def save_onto_a_full_disk(manager, state, **rest):
        if int(state.step) == 6:
            manager.wait_until_finished()
            disk.fill()
        save(manager, state, **rest)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save", save_onto_a_full_disk)
            # The next line of metrics.jsonl may meet the full disk before the writer's error is heard.
            errors = (checkpoints.CheckpointError, OSError)
            with pytest.raises(errors, match=r"(?s)No space left|File too large") as caught:
                train.run(config, workdir)
        assert isinstance(caught.value, OSError) or "intact (3)" in str(caught.value)
        disk.clear()
        assert [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]
        train.run(config, workdir)
        assert runs.losses(workdir) == runs.losses(whole)
    finally:
        disk.close()


@pytest.mark.parametrize("own_row", [True, False])
def test_any_flipped_bit_of_the_checksums_is_found(tmp_path, own_row):
    for name in ("meta", "params"):
        (tmp_path / name).write_bytes(name.encode())
    write_checksums(tmp_path)
    path = tmp_path / "checksums.json"
    if not own_row:  # as in checkpoints from before the row existed
        rows = json.loads(path.read_text())
        del rows["checksums.json"]
        path.write_text(json.dumps(rows, indent=1, sort_keys=True))
    assert find_damage(tmp_path) == []
    intact = path.read_bytes()
    for bit in range(8 * len(intact)):
        data = bytearray(intact)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        same = _loads(data) == json.loads(intact)  # one kind of white space became another
        assert bool(find_damage(tmp_path)) != same, (bit, data)


def _loads(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_checksums_are_there_when_the_checkpoint_is(whole):
    for step in (whole / "checkpoints").iterdir():
        assert find_damage(step) == []
        assert (step / "checksums.json").stat().st_size > 0
    assert np.isfinite(list(runs.losses(whole).values())).all()
