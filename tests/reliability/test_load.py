"""clipjax.load opens a run at the step that is named, names the folder of a checkpoint; it prints no warnings.

Options that do not fit the path are refused, as is a run without a checkpoint.
"""

import json
import logging
import shutil

import pytest

import clipjax
from clipjax.commands import import_weights
from clipjax.config import ConfigError, to_json_dict
from clipjax.interop.names import InteropError
from clipjax.runs import CheckpointError
from tests.eval_runs import run_of, save_steps, start_of
from tests.runs import build_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    config = run_of(folder, checkpoint__keep_last=2)
    save_steps(folder / "run", config, start_of(config), [2, 4])
    (folder / "run" / "config.json").write_text(json.dumps(to_json_dict(config)))
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


def test_options_for_the_other_kind_of_weights_are_refused(run, tmp_path):
    for name, value in (("preset", "siglip_b16"), ("family", "hf_clip"), ("state_dict", "model_ema")):
        with pytest.raises(ConfigError, match=rf"{name}='{value}'\): .*run is a run or an import, .* Leave it out\."):
            clipjax.load(run, **{name: value})
    for step in (12345, "best", 0):
        with pytest.raises(ConfigError, match=rf"step={step!r}\): .* is published weights, which have no steps"):
            clipjax.load(tmp_path, step=step)
    for size in (0, -3, 2.5):
        with pytest.raises(ConfigError, match=rf"batch_size={size}: expected a whole number of examples, 1 or more\."):
            clipjax.load(run, batch_size=size)


def test_hidden_layers_are_a_tuple_of_numbers(run):
    model = clipjax.load(run, batch_size=8)
    for layers in (-1, 1.5, "last", ("last",)):
        with pytest.raises(TypeError, match=r"hidden_layers=.*: expected a tuple of layer numbers, such as \(-1,\)"):
            model.encode_texts(["a circle"], hidden_layers=layers)


def test_a_run_needs_no_import_and_one_without_a_checkpoint_says_so(run, tmp_path):
    with pytest.raises(InteropError, match=r"needs no import: .* --checkpoint, config\.init_from or clipjax\.load\.$"):
        import_weights.run(str(run), tmp_path / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run / "config.json", empty)
    with pytest.raises(InteropError, match=r"needs no import: .* It has saved no checkpoint yet\.$"):
        import_weights.run(str(empty), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"empty'\): the run has saved no checkpoint yet\."):
        clipjax.load(empty)
    assert not (tmp_path / "out").exists()
