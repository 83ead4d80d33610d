"""clipjax.load opens a run at the step that is named, names the folder of a checkpoint; it prints no warnings."""

import logging

import pytest

import clipjax
from clipjax.runs import CheckpointError
from tests.eval_runs import run_of, save_steps, start_of
from tests.runs import build_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    config = run_of(folder, checkpoint__keep_last=2)
    save_steps(folder / "run", config, start_of(config), [2, 4])
    return folder / "run"


def weight(loaded):
    return float(loaded.params["text"]["token_embedding"]["embedding"][0, 0])


def test_a_step_is_a_number_or_its_digits_and_orbax_is_not_heard(run, caplog):
    with caplog.at_level(logging.WARNING):
        early, late = (weight(clipjax.load(run, step=step)) for step in (2, 4))
    assert early * 1.04 == pytest.approx(late * 1.02) and early != late
    assert weight(clipjax.load(str(run), step="2")) == early and weight(clipjax.load(run)) == late
    assert not caplog.records
    with pytest.raises(CheckpointError, match=r"no checkpoint '3'; it has the steps \[2, 4\]"):
        clipjax.load(run, step=3)


def test_a_checkpoint_is_refused_with_the_folder_to_name(run):
    with pytest.raises(CheckpointError, match=rf"name the run's folder {run}, with step=4\."):
        clipjax.load(run / "checkpoints" / "4")
    with pytest.raises(CheckpointError, match=rf"name the run's folder {run}\."):
        clipjax.load(run / "checkpoints")


def test_what_is_no_path_is_a_type_error():
    with pytest.raises(TypeError, match=r"clipjax\.load\(None\): expected the path of a run"):
        clipjax.load(None)
