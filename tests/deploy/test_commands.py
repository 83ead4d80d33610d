"""Every clipjax command in deploy/ is one that clipjax takes: its flags, its experiment and the experiment's fields."""

import importlib
import re

import pytest

from clipjax import __main__ as front_door
from clipjax.commands import flags as cli
from clipjax.config import from_config_dict
from tests.deploy.files import DEPLOY, FILES, ROOT, commands

# Those that do something else than run a command of clipjax.
WITHOUT = {"preemptible"}
COMMANDS = [(path.relative_to(DEPLOY).as_posix(), command) for path in FILES for command in commands(path)]


@pytest.mark.parametrize("file,command", COMMANDS, ids=[f"{file}-{command[0]}" for file, command in COMMANDS])
def test_clipjax_takes_the_command(monkeypatch, capsys, file, command):
    monkeypatch.chdir(ROOT)
    parsed = []
    monkeypatch.setattr(cli, "run_command", lambda values, body, **_: parsed.append(values))
    module = importlib.import_module(front_door.COMMANDS[command[0]][0])
    if command[0] == "doctor":  # which looks at the machine itself, and at the bucket
        monkeypatch.setattr(module, "report", lambda *_: True)
        with pytest.raises(SystemExit, match="^0$"):
            module.main(command)
        return
    module.main(command)
    for values in parsed:
        from_config_dict(values.config)
    if command[0] == "train":
        [values] = parsed
        assert re.match(r"(gs|s3)://my-bucket/|gs://BUCKET/", values.workdir)
        assert (values.coordinator_address is None) == (values.num_processes is None) == (values.process_id is None)


def test_a_command_with_a_wrong_flag_is_noticed(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "run_command", lambda *_, **__: None)
    path = tmp_path / "job.sh"
    path.write_text("srun clipjax train \\\n  --config=experiments/siglip_b16.py --workdir=gs://b/x --num_proceses=2\n")
    [command] = commands(path)
    with pytest.raises(SystemExit):
        importlib.import_module(front_door.COMMANDS[command[0]][0]).main(command)


def test_every_file_trains():
    trains = {file for file, command in COMMANDS if command[0] == "train"}
    every = {path.relative_to(DEPLOY).as_posix() for path in FILES if path.name not in WITHOUT}
    assert every - trains <= {"README.md", "docker/cpu.Dockerfile"}


def test_the_table_of_the_readme_has_every_file():
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| \[([^\]]+)\]\(([^)]+)\) \|", text, re.MULTILINE)
    assert all(name == link for name, link in rows)
    assert {name for name, _ in rows} == {
        path.relative_to(DEPLOY).as_posix() for path in FILES if path.name not in {"README.md", *WITHOUT}
    }
