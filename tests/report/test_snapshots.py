"""Snapshots of held-out pairs: written whole, one history, of one set of pairs."""

import numpy as np
import pytest

from clipjax.runs.snapshots import (
    FOLDER,
    PREDICTIONS,
    Snapshot,
    drop_snapshots,
    read_document,
    read_snapshots,
    write_document,
    write_snapshot,
)


def snapshot(step):
    rng = np.random.default_rng(step)
    return Snapshot(step, *rng.normal(size=(2, 4, 3)).astype(np.float32), 10.0)


@pytest.fixture
def workdir(tmp_path):
    for step in (0, 20, 100, 40):
        write_snapshot(tmp_path, snapshot(step), "set")
    write_document(tmp_path, PREDICTIONS, {"step": 100})
    return tmp_path


def test_snapshots_come_back_in_order_with_the_precision_of_float16(workdir):
    found = read_snapshots(workdir, "set")
    assert [s.step for s in found] == [0, 20, 40, 100]
    np.testing.assert_allclose(found[1].image, snapshot(20).image, rtol=1e-3)
    np.testing.assert_allclose(found[1].similarity, snapshot(20).image @ snapshot(20).text.T, atol=1e-2)
    assert found[1].logit_scale == 10.0 and found[1].image.dtype == np.float32
    assert sorted(p.name for p in (workdir / FOLDER).iterdir() if p.name.startswith(".")) == []


def test_a_resumed_run_drops_what_was_written_beyond_its_checkpoint(workdir):
    drop_snapshots(workdir, 40)
    assert [s.step for s in read_snapshots(workdir, "set")] == [0, 20, 40]
    assert read_document(workdir, PREDICTIONS) is None
    drop_snapshots(workdir, 0)
    assert read_snapshots(workdir, "set") == [], "a run from step 0 keeps nothing of another"


def test_damaged_snapshots_and_those_of_other_pairs_are_left_out(workdir):
    write_snapshot(workdir, snapshot(60), "another set")
    path = workdir / FOLDER / "20.npz"
    path.write_bytes(path.read_bytes()[:100])
    (workdir / FOLDER / "40.npz").write_bytes(b"")
    np.savez(workdir / FOLDER / "80.npz", image=np.array([None], object))
    assert [s.step for s in read_snapshots(workdir, "set")] == [0, 100]


def test_documents_that_are_torn_or_absent_are_none(tmp_path):
    assert read_document(tmp_path, PREDICTIONS) is None
    (tmp_path / FOLDER).mkdir()
    (tmp_path / PREDICTIONS).write_text('{"step": 1')
    assert read_document(tmp_path, PREDICTIONS) is None
    drop_snapshots(tmp_path / "nothing here", 0)
