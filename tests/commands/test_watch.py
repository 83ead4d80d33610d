"""clipjax eval --watch: each checkpoint once, in order, also after a restart; what vanishes is passed over."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from clipjax.commands import watch as watch_command
from clipjax.commands.eval import EvaluationError
from clipjax.commands.watch import watch
from clipjax.config import SourceConfig, eval_config, from_eval_config, to_config_dict
from clipjax.eval import RetrievalConfig
from clipjax.inference import evaluate
from clipjax.runs import CheckpointError, read_metrics
from tests.eval_runs import fake_embed, run_of, save_steps, start_of
from tests.runs import build_data


@pytest.fixture(autouse=True)
def no_layers(monkeypatch):
    monkeypatch.setattr(evaluate, "make_embed", fake_embed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(a finished run with checkpoints 3, 6 and 12, the evaluation to watch it with)."""
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    config = run_of(folder)
    save_steps(folder / "run", config, start_of(config), [3, 6, 12])
    evaluation = eval_config()
    source = SourceConfig(path=str(folder / "scenes"), split="validation")
    evaluation.eval.evaluators = {"pairs": to_config_dict(RetrievalConfig(source=source))}
    evaluation.eval.batch_size = 16
    return folder / "run", from_eval_config(evaluation)


@pytest.fixture
def copied(run, tmp_path):
    """The run without its last two checkpoints, those, and the evaluation."""
    workdir, evaluation = run
    shutil.copytree(workdir, tmp_path / "run")
    for step in ("6", "12"):
        shutil.move(tmp_path / "run" / "checkpoints" / step, tmp_path / step)
    return tmp_path / "run", tmp_path, evaluation


def arrives(monkeypatch, *moves):
    """Each wait of the watcher is one of these moves, (from, to) or None, instead of time."""
    left = list(moves)

    def sleep(seconds: float) -> None:
        move = left.pop(0)
        if move:
            shutil.move(*move) if move[1] else shutil.rmtree(move[0])

    monkeypatch.setattr(watch_command.time, "sleep", sleep)


def test_each_checkpoint_is_evaluated_once_until_the_last(copied, monkeypatch, capsys):
    workdir, stock, evaluation = copied
    checkpoints = workdir / "checkpoints"
    arrives(monkeypatch, None, (stock / "6", checkpoints / "6"), None, (stock / "12", checkpoints / "12"))
    assert watch(workdir, config=evaluation) == [3, 6, 12]
    lines = read_metrics(workdir / "eval")
    assert [line["step"] for line in lines] == [3, 6, 12]
    for line in lines:
        document = json.loads((workdir / "eval" / str(line["step"]) / "results.json").read_text())
        assert line["pairs/image_to_text_r10"] == document["results"]["pairs"]["image_to_text_r10"]
    assert list((workdir / "eval" / "tensorboard").iterdir())
    assert f"{workdir} is finished at step 12." in capsys.readouterr().out

    (workdir / "eval" / "metrics.jsonl").unlink()  # killed before the line was written
    assert watch(workdir, config=evaluation) == []
    assert read_metrics(workdir / "eval") == lines
    shutil.rmtree(workdir / "eval" / "6")
    assert watch(workdir, config=evaluation) == [6]
    # Trained anew in the same place, a step has other weights.
    config = run_of(Path(evaluation.eval.evaluators["pairs"].source.path).parent)
    state = start_of(config)
    state = dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    save_steps(stock / "other", config, state, [12])
    shutil.rmtree(checkpoints / "12")
    shutil.copytree(stock / "other" / "checkpoints" / "12", checkpoints / "12")
    assert watch(workdir, config=evaluation) == [12]
    assert watch(workdir, config=evaluation) == []
    monkeypatch.setattr(watch_command, "open_run", None)  # finished steps are not opened
    assert watch(workdir, config=evaluation) == []
    monkeypatch.undo()
    # Results that do not say what they are of, and those of other pixels.
    path = workdir / "eval" / "12" / "results.json"
    for change in (lambda one: one.pop("provenance"), lambda one: one["provenance"]["pairs"]["transform"].clear()):
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
        monkeypatch.setattr(evaluate, "make_embed", fake_embed)
        assert watch(workdir, config=evaluation) == [12]


def test_a_checkpoint_that_vanishes_is_passed_over_and_a_damaged_one_told_at_the_end(copied, monkeypatch, capsys):
    workdir, stock, evaluation = copied
    checkpoints = workdir / "checkpoints"
    shutil.move(stock / "12", checkpoints / "12")
    (checkpoints / "12" / "meta").rename(stock / "meta")
    listed = watch_command.Watcher.steps
    monkeypatch.setattr(watch_command.Watcher, "steps", lambda self: sorted({*listed(self), 6}))
    arrives(monkeypatch, *[None] * 10)
    monkeypatch.setattr(watch_command.Watcher, "_is_last", lambda self, step: step == 12)
    with pytest.raises(EvaluationError, match=r"1 checkpoints of .*run have no result:\n  step 12: "):
        watch(workdir, config=evaluation)
    printed = capsys.readouterr().out
    assert "Step 6 has been removed before it was evaluated." in printed
    assert "Step 12 cannot be evaluated: " in printed
    assert [line["step"] for line in read_metrics(workdir / "eval")] == [3]


def test_a_run_that_has_not_begun_is_waited_for_and_ctrl_c_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch_command.time, "sleep", interrupted)
    with pytest.raises(SystemExit) as stopped:
        watch(tmp_path / "later")
    assert stopped.value.code == 130
    waiting, stopping = capsys.readouterr().out.splitlines()
    assert waiting.startswith("Waiting for the first checkpoint in ") and stopping.startswith("Stopped; 0 checkpoints")


def test_a_folder_of_published_weights_is_no_run_to_watch(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds no checkpoints. .* seems to be published weights"):
        watch(Path(tmp_path))
