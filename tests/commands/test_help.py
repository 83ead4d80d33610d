"""Help and wrong flags need no JAX, and say what the command itself would say."""

import json
import subprocess
import sys

import pytest

from clipjax.__main__ import COMMANDS, FLAG, HELP_TEXTS, dispatch, help_of
from tests.runs import ROOT

HEAVY = (
    "jax", "jaxlib", "numpy", "flax", "optax", "orbax", "grain", "scipy", "sklearn", "matplotlib", "plotly", "pandas",
    "PIL", "pyarrow", "tensorflow", "tensorflow_datasets", "tensorboardX", "torch", "transformers",
    "mlflow", "wandb",
)  # fmt: skip
PROGRAM = f"""
import sys
from clipjax.machine import environment
from clipjax.__main__ import dispatch
sys.argv = ["clipjax", *sys.argv[1:]]
environment.prepare(sys.argv[1])
try:
    dispatch()
except SystemExit as error:
    print("exit code", error.code)
print("imported", [name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--help"], "usage: clipjax COMMAND"),
        (["train", "--help"], "--workdir"),
        (["train", "--confg=experiments/quickstart.py"], "exit code 2"),
    ],
)
def test_help_and_a_mistyped_flag_import_nothing_that_takes_time(arguments, expected):
    output = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert expected in output.stdout and output.stdout.endswith("imported []\n"), output


def test_the_help_that_is_kept_is_what_each_command_prints():
    kept = json.loads(HELP_TEXTS.read_text())
    assert list(kept) == list(COMMANDS)
    for command in COMMANDS:
        assert kept[command] == help_of(command), f"{command}: run python -m docs.generate"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--workdr=runs/x"],
        ["plan", "--nosearch", "--topologie=v5e:4x4"],
        ["import", "weights", "out", "--famly=x"],
    ],
)
def test_a_mistyped_flag_is_answered_as_by_the_command_itself(arguments, monkeypatch, capsys, tmp_path):
    answers = []
    monkeypatch.setattr(sys, "argv", ["clipjax", *arguments])
    for kept in (HELP_TEXTS, tmp_path / "none"):
        monkeypatch.setattr("clipjax.__main__.HELP_TEXTS", kept)
        with pytest.raises(SystemExit) as error:
            dispatch()
        answers.append((error.value.code, capsys.readouterr().err))
    assert answers[0] == answers[1] and answers[0][0] == 2 and answers[0][1].startswith("error: Unknown")


def test_right_flags_are_left_to_the_command():
    from clipjax.commands.flags import refuse_unknown_flags

    names = FLAG.findall(json.loads(HELP_TEXTS.read_text())["plan"])
    for arguments in (["--nosearch"], ["--config=x.py", "--config.no_such=3"], ["--topology", "v5e:4x4"], ["--out"]):
        refuse_unknown_flags(["plan", *arguments], names)
