"""Experiment files: what a wrong one gets, and what `clipjax config` shows."""

import re

import pytest

from clipjax.commands import config as command
from clipjax.commands import export, import_weights, train
from clipjax.commands.config_file import load_config_file
from clipjax.commands.flags import read_config
from clipjax.config import ConfigError, ExperimentConfig, default_config, from_config_dict
from clipjax.config.comments import field_comments
from clipjax.models.presets import get_preset

BEGIN = "from clipjax.config import *\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("seed = 1\n", r"x\.py defines no function get_config\(\); expected one that returns"),
        ("get_config = 3\n", r"x\.py defines no function get_config\(\)"),
        ("def get_config():\n    return (\n", r"x\.py, line 2: '\(' was never closed"),
        (
            "\n\nimport no_such_package\n",
            r"line 3: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("def get_config():\n    pass\n", r"x\.py: get_config\(\) returned None \(is its return statement missing\?\)"),
        ("def get_config():\n    return 7\n", r"x\.py: get_config\(\) returned 7; expected a ConfigDict"),
        (
            "def get_config():\n    return helper()\n\ndef helper():\n    return {}['a']\n",
            r"line 5: KeyError: 'a'",
        ),
        (
            "def get_config(loss):\n    return {}\n",
            r"get_config\(loss\) does not take 0 argument\(s\)",
        ),
        ("import sys\nsys.exit(3)\n", r"x\.py, line 2: SystemExit: 3"),
        (f"{BEGIN}def get_config():\n    return {{'sed': 1}}\n", r"Unknown field config\.sed\. Did you mean 'seed'\?"),
        (
            BEGIN + "def get_config():\n    c = default_config()\n    c.seed = 'a'\n    return c\n",
            r"line 4: TypeError",
        ),
    ],
)
def test_a_wrong_experiment_file_is_one_line_with_its_name_and_line(tmp_path, capsys, source, message):
    (tmp_path / "x.py").write_text(source)
    with pytest.raises(SystemExit) as end:
        train.main(["train", f"--config={tmp_path / 'x.py'}", "--workdir=x"])
    shown = capsys.readouterr().err.strip()
    assert end.value.code == 2 and len(shown.splitlines()) == 1 and re.search(message, shown), shown


def test_a_file_that_is_not_utf_8_or_not_python_is_refused(tmp_path):
    (tmp_path / "x.py").write_bytes(b"name = 'caf\xe9'\n")
    with pytest.raises(ConfigError, match=r"x\.py.*line 1: .*(utf-8|encoding)"):
        load_config_file(str(tmp_path / "x.py"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"x\.json is not a Python file"):
        load_config_file(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    "returned",
    [
        "{'seed': 3}",
        "ConfigDict({'seed': 3})",
        "ExperimentConfig(seed=3)",
        "default_config().lock()",
    ],
)
def test_whatever_holds_fields_becomes_a_whole_configuration(tmp_path, returned):
    source = f"{BEGIN}from ml_collections import ConfigDict\ndef get_config():\n    return {returned}\n"
    (tmp_path / "x.py").write_text(source)
    config = load_config_file(str(tmp_path / "x.py"))
    assert config.optimizer.schedule.warmup_steps == 0, "every field is there, for --config.NAME to set"
    assert from_config_dict(config).seed in (0, 3)
    config.loss.name = "cyclip"
    assert config.loss.in_modal_weight == 0.25


@pytest.mark.parametrize(
    "change",
    [
        "c.model.image = ConfigDict(dict(name='vit', width=64))",
        "c.model.image = dict(name='vit', width=64)",
        "c.model = ConfigDict(dict(image=dict(name='vit', width=64)))",
    ],
)
def test_a_section_that_a_file_replaces_by_some_fields_still_takes_flags_for_the_others(tmp_path, change):
    start = f"{BEGIN}from ml_collections import ConfigDict\ndef get_config():\n    c = default_config()\n"
    (tmp_path / "x.py").write_text(f"{start}    {change}\n    return c\n")
    arguments = [f"--config={tmp_path / 'x.py'}", "--config.model.image.dropout=0.1"]
    image = read_config(arguments).model.image
    assert (image.name, image.width, image.dropout) == ("vit", 64, 0.1)
    arguments += ["--config.model.image.name=naflex", "--config.model.image.max_patches=9"]
    image = read_config(arguments).model.image
    assert (image.name, image.width, image.max_patches) == ("naflex", 64, 9)
    with pytest.raises(ConfigError, match="'vit' has no such field, 'naflex' has"):
        read_config([arguments[0], arguments[-1]])


def test_fields_that_a_file_ties_to_others_are_told(tmp_path, caplog):
    text = f"{BEGIN}def get_config():\n    c = default_config()\n    c.tokenizer.lowercase = True\n    {{}}return c\n"
    (tmp_path / "x.py").write_text(text.format(""))
    arguments = [f"--config={tmp_path / 'x.py'}", "--config.total_steps=500"]
    read_config(arguments)
    assert not caplog.text
    tied = "c.optimizer.schedule.warmup_steps = c.get_ref('total_steps') // 2", "c.eval.every_steps = c.get_ref('seed')"
    (tmp_path / "x.py").write_text(text.format("".join(f"{line}\n    " for line in tied)))
    config = read_config(arguments)
    assert config.total_steps == 500 and config.optimizer.schedule.warmup_steps != 250
    told = caplog.text.partition("x.py ties ")[2].partition(" to other fields (get_ref), but a flag moves only")[0]
    assert set(told.split(", ")) == {
        f"config.{name}" for name in ("optimizer.schedule.warmup_steps", "eval.every_steps", "seed")
    }


def test_the_argument_after_the_colon_goes_to_get_config(tmp_path):
    (tmp_path / "x.py").write_text(f"{BEGIN}def get_config(seed='1'):\n    return {{'seed': int(seed)}}\n")
    assert [load_config_file(str(tmp_path / "x.py") + end).seed for end in ("", ":7")] == [1, 7]
    with pytest.raises(ConfigError, match=r"line 3: ValueError: invalid literal"):
        load_config_file(str(tmp_path / "x.py") + ":many")


def test_a_dataclass_is_a_section_too():
    config = default_config()
    config.model = get_preset("siglip_b16")
    config.model.image.depth = 2
    config.model.image.name = "naflex"
    assert from_config_dict(config).model.image.depth == 2 and config.model.image.max_patches == 256


def test_a_field_of_another_section_is_named(capsys):
    with pytest.raises(SystemExit):
        train.main(["train", "--config=experiments/quickstart.py", "--config.learning_rate=1", "--workdir=x"])
    shown = capsys.readouterr().err
    assert "no such field config.learning_rate" in shown
    assert "Fields of that name: config.optimizer.learning_rate." in shown
    with pytest.raises(SystemExit):
        train.main(["train", "--config=experiments/quickstart.py", "--config.optimizer.lr=1", "--workdir=x"])
    assert "Known: b1, b2, ema_decay" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.total_steps=1.5", "--config.total_steps=1.5: expected a whole number."),
        ("--config.total_steps=None", "config.total_steps is None (NoneType); expected int."),
        ("--config.optimizer.eps=small", "--config.optimizer.eps=small: expected a number."),
        ("--config.log.figures=maybe", "--config.log.figures=maybe: expected true or false."),
        ("--config.loss.name", "--config.loss.name has no value; expected --config.loss.name=value."),
        ("--config.model.image=vit", "config.model.image is a section; set its fields one by one: image_size, "),
        ("--config.eval.evaluators={}", "config.eval.evaluators is a section; set its fields one by one: "),
        ("--config.data.pixels.mean[0]=1", "config.data.pixels.mean=(0.5, 0.5, 0.5) is set as a whole; expected "),
        ("--config.seed[0]=1", "config.seed=0 is set as a whole; expected config.seed=value."),
        ("--seed=1", "Unknown command line flag 'seed'. Fields of the experiment are set as --config.NAME=value"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_was_expected(capsys, argument, message):
    with pytest.raises(SystemExit) as end:
        command.main(["config", "--config=experiments/quickstart.py", argument])
    shown = capsys.readouterr().err.strip()
    assert end.value.code in (1, 2) and len(shown.splitlines()) == 1 and message in shown, shown


def test_none_on_the_command_line_unsets_a_field_that_may_be_unset(capsys):
    command.main(
        ["config", "--config=experiments/quickstart.py", "--config.model.logit_bias_init=None", "--only=model"]
    )
    assert re.search(r"^  model\.logit_bias_init +None +None", capsys.readouterr().out, re.M)


def test_config_shows_every_field_with_value_default_and_meaning(capsys):
    command.main(["config", "--config=experiments/quickstart.py", "--config.loss.name=cyclip"])
    shown = capsys.readouterr().out
    names = [line[2:].split()[0] for line in shown.splitlines() if line[2:3].strip()][1:]
    assert len(names) == len(set(names)) > 100
    assert re.search(r"^\* total_steps +700 +10000 +updates of the weights$", shown, re.M)
    assert re.search(r"^\* loss\.name +'cyclip' +'softmax' +softmax \| ", shown, re.M)
    assert re.search(r"^  loss\.in_modal_weight +0\.25 +0\.25", shown, re.M), "fields of the part that was chosen"


def test_config_shows_what_changed_and_one_section(capsys):
    command.main(["config", "--config=experiments/quickstart.py", "--changed", "--only=optimizer"])
    # Before the table there may be the line about kept programs, which the first command of a process prints.
    _, header, table = capsys.readouterr().out.partition("  field ")
    shown = table.splitlines()[1:]
    assert header and shown and all(line.startswith(("* optimizer.", "     ")) for line in shown)
    with pytest.raises(SystemExit):
        command.main(["config", "--config=experiments/quickstart.py", "--only=optimiser"])
    assert "--only=optimiser: no such section or field. Expected accumulation_steps," in capsys.readouterr().err
    assert command.show(ExperimentConfig(), changed=True) == "Every field has its default."


def test_comments_are_read_where_they_stand():
    beside, above = field_comments(ExperimentConfig)["total_steps"], field_comments(ExperimentConfig)["init_from"]
    assert beside == "updates of the weights"
    assert above == "weights to start from: the --workdir of a run, or a directory that clipjax import wrote"


@pytest.mark.parametrize(("main", "name"), [(import_weights.main, "import"), (export.main, "export")])
def test_a_command_without_an_experiment_file_takes_no_config(main, name, capsys):
    with pytest.raises(SystemExit):
        main([name, "a", "b", "--config=experiments/quickstart.py"])
    assert "Unknown command line flag 'config'" in capsys.readouterr().err
