"""The command line: help with examples, and one line for a mistake."""

import importlib

import pytest

from clipjax.__main__ import COMMANDS, dispatch
from clipjax.commands import eval as eval_command
from clipjax.commands import export, import_weights, train


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_and_every_flag(command, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(COMMANDS[command][0]).main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"clipjax {command} " in shown
    assert ("  --config\n" in shown) == (command not in ("init", "import", "export", "compare"))
    assert ("  --coordinator_address\n" in shown) == (command in ("train", "embed", "eval", "doctor"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=experiments/none.py"], "--config=experiments/none.py: there is no such file"),
        (
            ["--config=experiments/quickstart.py", "--config.loss.nam=softmax"],
            "--config.loss.nam=softmax: no such field",
        ),
        (["--config=experiments/quickstart.py", "--config.seed=many"], "--config.seed=many: expected a whole number"),
        (["--config=experiments/quickstart.py", "--wrkdir=x"], "Did you mean: workdir"),
        (["--config=experiments/quickstart.py", "softmax"], "Unexpected argument 'softmax'"),
        (["--config=experiments/quickstart.py"], "--workdir is missing"),
        (["--workdir=x"], "--config is missing"),
        (["--workdir=x", "--config.seed=1"], "--config.NAME=value goes with --config=FILE"),
        (["--config=experiments/quickstart.py", "--workdir="], "--workdir= is empty; give it a value"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["train", *arguments])
    assert end.value.code == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error: ")
    assert message in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split=train"], "--split=train chooses a split of --data, which is missing. Add --data=FOLDER"),
        (["--split=train", "--watch"], "--split=train chooses a split of --data, which is missing"),
        (["--split=train", "--config=experiments/quickstart.py"], "--split=train chooses a split of --data"),
        (["--data="], "--data= is empty; give it a value, or leave it out."),
        (["--data=", "--split=train"], "--data= is empty; give it a value, or leave it out."),
        (["--data=photos", "--split="], "--split= is empty; give it a value, or leave it out."),
    ],
)
def test_eval_refuses_a_split_without_data_and_data_without_a_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        eval_command.main(["eval", "--checkpoint=runs/none", *arguments])
    shown = capsys.readouterr().err.strip()
    assert end.value.code == 2 and message in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize("format", ["peft", "adapters"])
@pytest.mark.parametrize("flag", ["--tower=image", "--nearest_pixels", "--notokenizer"])
def test_export_refuses_what_a_format_of_adapters_cannot_use(flag, format, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        export.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), f"--format={format}", flag])
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 1 and f"--format={format} writes the adapters" in shown
    assert f"takes no {flag.partition('=')[0]}. Leave that out" in shown and not list(tmp_path.iterdir())


def test_an_unknown_command_lists_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["clipjax", "trian"])
    with pytest.raises(SystemExit) as end:
        dispatch()
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert "train" in shown.out
    assert shown.err.strip() == "Unknown command 'trian'. Did you mean 'train'?"


@pytest.mark.parametrize("module", [import_weights, export])
def test_a_place_without_a_name_is_refused_as_a_missing_one(module, capsys):
    with pytest.raises(SystemExit):
        module.main(["import", "", "x", "--format=hf"])
    assert "error: usage: clipjax " in capsys.readouterr().err
