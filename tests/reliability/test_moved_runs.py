"""A run can be moved: it has its tokenizer and class names with it, and finds its data from any folder."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clipjax
from clipjax.commands import eval as eval_command
from clipjax.commands import export, report, train
from clipjax.commands.preflight import Preflight
from clipjax.config import ConfigError, SourceConfig, to_config_dict, to_json_dict
from clipjax.data.records import ManifestError
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from clipjax.inference import evaluate
from clipjax.inference.looking import evaluation_of
from clipjax.inference.prepare import prepare_model
from clipjax.interop.foreign import open_foreign
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs import open_run, own_files
from clipjax.runs.fingerprint import FingerprintError, completed, fingerprint
from clipjax.runs.own_files import keep_files
from clipjax.runs.sweep import trained_config
from data_pipelines import train_tokenizer
from tests.eval_runs import fake_embed, run_of, start_of
from tests.runs import ROOT, build_data

NAMES = "class_names.txt"


@pytest.fixture
def no_layers(monkeypatch):
    monkeypatch.setattr(evaluate, "make_embed", fake_embed)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """data/scenes, data/scenes.model, and data/class_names.txt with the classes of the scenes."""
    folder = tmp_path_factory.mktemp("built") / "data"
    build_data(folder)
    names = json.loads((folder / "scenes" / "manifest.json").read_text())["class_names"]
    (folder / NAMES).write_text("\n".join(names))
    return folder


def relative_config(**changes):
    """A run that names everything relative to the folder in which it is started."""
    source = SourceConfig(path="data/scenes", split="validation")
    evaluators = {
        "zero_shot": to_config_dict(ZeroShotConfig(source=source, class_names=f"data/{NAMES}")),
        "retrieval": to_config_dict(RetrievalConfig(source=source)),
    }
    return run_of(Path("data"), eval__evaluators=evaluators, **changes)


def save(config, workdir, steps=(3,)):
    """Checkpoints of a run that was started in the current folder; nothing is compiled."""
    kept = keep_files(config, workdir)
    own, state = fingerprint(config, Preflight(config).tokenizer), start_of(config)
    with checkpoints.open_checkpoints(workdir, config.checkpoint) as manager:
        for step in steps:
            checkpoints.save(
                manager,
                dataclasses.replace(state, step=np.int32(step)),
                data_state={"bad": {}},
                config=kept.config,
                fingerprint=own,
                paths=kept.paths,
            )
            manager.wait_until_finished()
    (Path(workdir) / "config.json").write_text(json.dumps(to_json_dict(kept.config)))


@pytest.fixture
def project(built, tmp_path, monkeypatch):
    """A folder with data/ and runs/one, which is the current folder."""
    folder = tmp_path / "my project"
    shutil.copytree(built, folder / "data")
    monkeypatch.chdir(folder)
    save(relative_config(), Path("runs/one"))
    return folder


def test_a_run_holds_its_files_and_names_them_relative_to_itself(project):
    config = trained_config(project / "runs/one")
    for path in (config.tokenizer.path, config.eval.evaluators["zero_shot"].class_names):
        assert not Path(path).is_absolute() and (project / "runs/one" / path).is_file()
    copy = (project / "runs/one" / config.tokenizer.path).read_bytes()
    assert copy == (project / "data/scenes.model").read_bytes()
    assert config.data.train.path == "data/scenes"  # data are not copied
    with open_run("runs/one") as run:
        assert run.config.eval.evaluators["retrieval"].source.path == "data/scenes"


def test_a_restart_sees_the_paths_that_the_run_was_started_with(project):
    start = Preflight(relative_config(), "runs/one")
    assert start.restart.step == 3 and start.restart.changes == []
    changed = Preflight(relative_config(log__every_steps=7), "runs/one").restart.changes
    assert changed == ["  config.log.every_steps: 1 -> 7"]


def test_a_changed_tokenizer_is_told_with_the_copy_to_go_on_with(project, built):
    (project / "texts.txt").write_text("red blue green yellow circle square star\n" * 5)
    model = project / "data/scenes.model"
    model.unlink()
    train_tokenizer.build(model, text=project / "texts.txt", vocab_size=40, overwrite=True)
    with pytest.raises(FingerprintError, match="data/scenes.model has changed since the run began") as error:
        _ = Preflight(relative_config(), "runs/one").restart
    copy = str(error.value).rpartition("--config.tokenizer.path=")[2].rstrip(".")
    again = Preflight(relative_config(tokenizer__path=copy), "runs/one").restart
    assert [line.split(":")[0].strip() for line in again.changes] == ["config.tokenizer.path"]


def test_a_tokenizer_that_is_gone_is_the_copy_of_the_run(project):
    (project / "data/scenes.model").unlink()
    with pytest.raises(ConfigError, match="is not a file"):
        _ = Preflight(relative_config()).tokenizer
    assert Preflight(relative_config(), "runs/one").restart.step == 3


def test_an_experiment_whose_tokenizer_is_gone_evaluates_with_the_run_s(project):
    (project / "data/scenes.model").unlink()
    with open_run("runs/one") as run:
        _, _, tokenizer = prepare_model(run, relative_config())
        assert tokenizer.sha256 == run.fingerprint["tokenizer.sha256"]


def test_class_names_that_change_later_do_not_change_what_an_earlier_checkpoint_means(project):
    (project / "data" / NAMES).write_text("others\n")
    with open_run("runs/one") as run:
        assert "others" not in Path(run.config.eval.evaluators["zero_shot"].class_names).read_text()


@pytest.mark.parametrize("where", ["elsewhere", "moved with its project", "moved alone"])
def test_a_run_evaluates_from_any_folder_and_after_moving(project, tmp_path, monkeypatch, no_layers, where):
    expected = eval_command.run("runs/one", out=tmp_path / "before")["results"]
    place = project / "runs/one"
    if where == "moved alone":
        place = Path(shutil.move(place, tmp_path / "alone"))
    elif where == "moved with its project":
        place = project.rename(tmp_path / "other") / "runs/one"
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    document = eval_command.run(place, out=tmp_path / "after")
    assert document["results"] == expected


def test_a_project_that_is_copied_is_evaluated_on_its_own_data(project, tmp_path, no_layers):
    copy = shutil.copytree(project, tmp_path / "copy")
    with open_run(copy / "runs/one") as run:
        assert run.config.eval.evaluators["retrieval"].source.path == str(copy / "data/scenes")


def test_data_that_did_not_move_with_a_run_are_one_line_and_other_data_are_taken(
    project, tmp_path, monkeypatch, no_layers, capsys
):
    expected = eval_command.run("runs/one", config=evaluation_of("data/scenes", "validation"), out=tmp_path / "a")
    place = shutil.move(project / "runs/one", tmp_path / "alone")
    shutil.move(project / "data", tmp_path / "other data")
    shutil.rmtree(project)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(ManifestError, match=r"data/scenes \(for retrieval, zero_shot\).*--data=FOLDER") as error:
        eval_command.run(place, out=tmp_path / "no")
    assert "\n" not in str(error.value) and not (tmp_path / "no").exists()
    arguments = [f"--checkpoint={place}", "--data=../other data/scenes", "--split=validation"]
    eval_command.main(["eval", *arguments, f"--out={tmp_path / 'b'}"])
    results = json.loads((tmp_path / "b" / "results.json").read_text())["results"]
    assert results == json.loads(json.dumps(expected["results"]))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        eval_command.main(["eval", f"--checkpoint={place}"])
    shown = capsys.readouterr().err.splitlines()
    assert end.value.code == 1 and len(shown) == 1 and "Copy the data there" in shown[0]


def test_a_moved_run_is_loaded_exported_and_reported(project, tmp_path, monkeypatch):
    place = shutil.move(project / "runs/one", tmp_path / "alone")
    shutil.rmtree(project)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    model = clipjax.load(place)
    assert model.tokenizer(["a red circle"]).shape == (1, 8)
    export.run(place, tmp_path / "out", format="hf")
    again = open_foreign(str(tmp_path / "out"))
    assert again.config.tokenizer.path
    (Path(place) / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    report.run([place])
    assert (Path(place) / "report.html").is_file()


def test_a_run_without_copies_is_still_read(project, tmp_path, no_layers):
    from tests.eval_runs import save_steps

    config = relative_config()
    save_steps(tmp_path / "old", config, start_of(config), [3])
    with open_run(tmp_path / "old") as run:
        assert run.config.tokenizer.path == "data/scenes.model"
    assert eval_command.run(tmp_path / "old", out=tmp_path / "result")["results"]["zero_shot"]["examples"] == 26


@pytest.mark.slow
def test_a_trained_run_in_another_process_and_folder(project, tmp_path):
    """clipjax train writes the copies; another process, elsewhere, evaluates what was moved."""
    train.run(relative_config(total_steps=2, eval__every_steps=0), Path("runs/trained"))
    place = shutil.move(project / "runs/trained", tmp_path / "moved run")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "clipjax", "eval", f"--checkpoint={place}"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (Path(place) / "eval/2/results.json").is_file()


def test_a_run_of_a_version_without_a_field_is_read_with_the_fields_default(project):
    """What was computed before there was a choice is the default."""
    with open_run("runs/one") as run:
        stored, config = run.fingerprint, run.config
    older = {name: value for name, value in stored.items() if name not in ("image.pool", "tokenizer.eos_to_pad")}
    assert completed(older, config) == stored
    assert completed({"image.pool": "another"}, config)["image.pool"] == "another"
    assert not any(name.startswith("tokenizer.") for name in completed({"image.pool": "map"}, config))


def test_a_folder_whose_own_name_looks_like_a_pattern_is_where_it_is(tmp_path):
    """A path that is missing there is looked for in the next folder."""
    first, second = tmp_path / "run[1]", tmp_path / "other"
    first.mkdir()
    (second / "data" / "shards").mkdir(parents=True)
    starts = [str(first), str(second)]
    assert own_files._found("data/shards", starts) == str(second / "data" / "shards")
    assert own_files._found("data/shards/{00..12}.tar", starts) == str(second / "data/shards/{00..12}.tar")
    assert own_files.fixed_part("data/*/x.tar", str(second)) == "data"
    assert own_files._found("nowhere/x", starts) == "nowhere/x"
