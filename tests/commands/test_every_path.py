"""Every flag and field that names a path: what it does with one in a bucket, and with one that nobody can read.

FLAGS and FIELDS are the tables; a flag or field that is in none of them fails a test, until somebody decides.
"""

import dataclasses
import importlib
import json
import re

import pytest

from clipjax.__main__ import COMMANDS, FLAG, HELP_TEXTS
from clipjax.commands import bucket_paths
from clipjax.commands import flags as cli
from clipjax.config import EvaluationConfig, ExperimentConfig, default_config, from_config_dict
from clipjax.config.fields import metadata
from clipjax.data.sources import SOURCES
from clipjax.eval import EVALUATORS
from clipjax.losses import LOSSES
from clipjax.storage import StorageError
from data_pipelines import command as pipeline

EXPERIMENT = "from clipjax.config import default_config as get_config\n"
BUCKET, LOCAL = "here or in a bucket", "here alone"
# (command, flag, or SRC and DST of a place without one) -> where it may be.
FLAGS = {
    ("check", "workdir"): BUCKET,
    ("compare", "RUN"): BUCKET,
    ("compare", "out"): BUCKET,
    ("doctor", "workdir"): BUCKET,
    ("embed", "out"): BUCKET,
    ("eval", "checkpoint"): BUCKET,
    ("eval", "data"): BUCKET,
    ("eval", "out"): BUCKET,
    ("export", "SRC"): BUCKET,
    ("export", "DST"): BUCKET,
    ("import", "SRC"): BUCKET,
    ("import", "DST"): BUCKET,
    ("init", "DST"): LOCAL,
    ("init", "data"): BUCKET,
    ("plan", "out"): BUCKET,
    ("report", "RUN"): BUCKET,
    ("report", "out"): BUCKET,
    ("sweep", "workdir"): BUCKET,
    ("train", "workdir"): BUCKET,
    **{(command, "config"): LOCAL for command in COMMANDS},
}
# What the commands take besides, for the parser to be content.
OTHERS = {
    "eval": {"checkpoint": "run"},
    "embed": {"config": "x.py", "out": "out"},
    "export": {"SRC": "run", "DST": "out", "format": "hf"},
    "import": {"SRC": "run", "DST": "out"},
    "init": {"DST": "x.py", "data": "photos"},
    "plan": {"config": "x.py", "topology": "cpu:8"},
    "report": {"RUN": "run"},
    "compare": {"RUN": "run"},
    "sweep": {"config": "x.py", "workdir": "out"},
    "train": {"config": "x.py", "workdir": "out"},
    "check": {"config": "x.py"},
    "check-data": {"config": "x.py"},
    "config": {"config": "x.py"},
    "doctor": {},
}
PLACES = ("SRC", "RUN", "DST")  # arguments without a flag, in this order
NO_PATHS = {
    "baseline", "broken", "changed", "check_timeout", "compare", "compute", "coordinator_address", "decode",
    "dtype", "family", "format", "image_key", "jobs", "json", "label_key", "launch", "metric", "model",
    "nearest_pixels", "num_processes", "only", "parity", "poll_seconds", "preset", "pretrained", "process_id",
    "records", "redo", "sbatch", "search", "seeds", "split", "start_timeout", "state_dict", "step", "target",
    "text_key", "tokenizer", "topology", "tower", "vary", "watch",
}  # fmt: skip
# Paths that nobody can read or write: another scheme, one that lost a slash, no bucket, folders that lead out.
WRONG = ("hdfs://name/x", "az://name/x", "http://name/x", "gs:/name/x", "s3:/name/x", "gs://", "s3://name/../x")


def line_for(command: str, name: str, value: str) -> list[str]:
    """The command line in which the flag or place has the value."""
    given = {**OTHERS[command], name: value}
    places = [given[place] for place in PLACES if place in given]
    return [command, *places, *(f"--{flag}={text}" for flag, text in given.items() if flag not in PLACES)]


def refused(command: str, line: list[str], folder, monkeypatch, capsys) -> str:
    """The one line that refuses a command line; nothing is made in the folder."""
    (folder / "x.py").write_text(EXPERIMENT)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(COMMANDS[command][0]).main(line)
    assert end.value.code in (1, 2)
    [shown] = capsys.readouterr().err.strip().split("\n")
    assert shown.startswith("error: ")
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["x.py"]
    return shown


def flags_of(command: str) -> set[str]:
    return set(FLAG.findall(json.loads(HELP_TEXTS.read_text("utf-8"))[command]))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_a_path_in_the_table_or_none(command):
    paths = {flag for of, flag in FLAGS if of == command}
    unknown = flags_of(command) - paths - NO_PATHS
    assert not unknown, f"Decide in FLAGS where these may be: {unknown}"
    assert {flag for flag in flags_of(command) & set(bucket_paths.FLAGS)} <= paths


@pytest.mark.parametrize("command,flag", [key for key in FLAGS if key[1] in flags_of(key[0]) or key[1] in PLACES])
def test_a_path_in_no_known_place_is_refused_by_name_before_anything_is_made(
    command, flag, tmp_path, monkeypatch, capsys
):
    for number, value in enumerate(WRONG if command == "train" else WRONG[:4:3]):
        folder = tmp_path / str(number)
        folder.mkdir()
        shown = refused(command, line_for(command, flag, value), folder, monkeypatch, capsys)
        assert value in shown
        scheme = value.split("/")[0]
        if FLAGS[command, flag] == BUCKET and scheme in ("hdfs:", "az:", "http:", "gs:/"):
            assert f"{scheme}//" in shown or f"{scheme}/ is not supported" in shown
        if flag not in PLACES:
            assert f"--{flag}=" in shown


@pytest.mark.parametrize("command,flag", [key for key, where in FLAGS.items() if where == LOCAL and key[1] != "config"])
def test_a_path_that_must_be_local_is_refused_in_a_bucket(command, flag, tmp_path, monkeypatch, capsys):
    value = "gs://bucket/mine.py"
    shown = refused(command, line_for(command, flag, value), tmp_path, monkeypatch, capsys)
    assert f"{value} is in a bucket; expected a path of this machine." in shown


@pytest.mark.parametrize("value", ["gs://bucket/x.py", "gs://bucket/x.py:argument", "hdfs://name/x.py"])
def test_an_experiment_is_a_file_of_this_machine(value, tmp_path, monkeypatch, capsys):
    shown = refused("train", ["train", f"--config={value}", "--workdir=out"], tmp_path, monkeypatch, capsys)
    assert shown == f"error: --config={value}: an experiment is a Python file of this machine. Copy it here first."


# Fields -> what is done with one in a bucket.
OWN, DATA, FOLDER = "own", "data", "folder"
FIELDS = {
    "tokenizer.path": OWN,
    "class_names": OWN,
    "templates_file": OWN,
    "class_prompts": OWN,
    "skip_groups": OWN,
    "path": DATA,
    "images": DATA,
    "data_dir": DATA,
    **{name: FOLDER for name in bucket_paths.FOLDERS},
}
NO_PATH_FIELDS = re.compile(
    r"(^|\.)(name|split|comm|dtype|best_metric|cache_dir|wandb|mlflow|profile|suite|published_as|language|dataset|"
    r"\w*(key|column|field|delimiter|members)|\w*prompt|text_table|version|task|fill\w*|caption\w*|image_text|label\w*|"
    r"worst_as)$"
)


def text_fields(config, prefix=""):
    """(dotted name, class, field's name) of every text in a configuration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from text_fields(value, f"{prefix}{field.name}.")
        elif field.type == "str":
            yield f"{prefix}{field.name}", type(config), field.name


def all_text_fields():
    yield from text_fields(ExperimentConfig())
    yield from text_fields(EvaluationConfig())
    for table, prefix in ((SOURCES, "data.train."), (EVALUATORS, ""), (LOSSES, "loss.")):
        for name, row in table.items():
            yield from text_fields(row.config(name=name), prefix)


def test_every_text_of_a_configuration_is_a_path_in_the_table_or_none():
    undecided = set()
    for dotted, owner, name in all_text_fields():
        declared = metadata(owner, name).get("declaration")
        if name in ("path", "data_dir"):  # TFDS declares neither: the first is a name there
            assert name in FIELDS
        elif (kind := declared.path if declared else "") or dotted in bucket_paths.FOLDERS:
            assert FIELDS.get(dotted, FIELDS.get(name)) == (kind or FOLDER), dotted
        elif not NO_PATH_FIELDS.search(dotted):
            undecided.add(dotted)
    assert not undecided, f"Declare these as paths, or add them to NO_PATH_FIELDS: {sorted(undecided)}"


@pytest.mark.parametrize(
    "field",
    ["tokenizer.path", "data.train.path", "data.train.images", "init_from", "init_image_from", "init_text_from",
     "loss.teacher", "data.image_embeddings", "data.teacher_embeddings", "eval.evaluators.a.class_names",
     "eval.evaluators.a.source.path"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["hdfs://name/x", "gs:/name/x"])
def test_a_field_with_a_path_in_no_known_place_is_refused_by_name(field, value, tmp_path, monkeypatch, capsys):
    experiment = (
        "from clipjax.config import default_config, to_config_dict\n"
        "from clipjax.data.sources import SOURCES\nfrom clipjax.eval import ZeroShotConfig\n"
        "from clipjax.losses import LOSSES\n"
        "def get_config():\n    config = default_config()\n"
        "    config.eval.evaluators = {'a': to_config_dict(ZeroShotConfig())}\n"
        f"    config.loss = to_config_dict(LOSSES['distill'].config(name='distill'))\n"
        f"    config.data.train = to_config_dict(SOURCES['multilingual'].config(name='multilingual'))\n"
        f"    config.{field} = {value!r}\n    return config\n"
    )
    monkeypatch.setattr(__import__(__name__, fromlist=["x"]), "EXPERIMENT", experiment)
    shown = refused("train", ["train", "--config=x.py", "--workdir=out"], tmp_path, monkeypatch, capsys)
    assert f"config.{field}={value}: the scheme {value.split('name')[0]} is not supported" in shown


def test_a_configuration_without_buckets_is_as_it_was():
    config = from_config_dict(default_config())
    bucket_paths.check_config(config)
    assert bucket_paths.with_local_files(config) is config


# Of the pipelines, the flags that are paths; "prepare" has its own.
PIPELINES = {
    ("csv", "out"): BUCKET, ("csv", "table"): LOCAL, ("csv", "image_root"): LOCAL, ("csv", "class_names"): LOCAL,
    ("jsonl", "out"): BUCKET, ("jsonl", "table"): LOCAL, ("jsonl", "image_root"): LOCAL,
    ("jsonl", "class_names"): LOCAL,
    ("image_folder", "out"): BUCKET, ("image_folder", "images"): LOCAL, ("image_folder", "class_names"): LOCAL,
    ("emoji", "out"): BUCKET, ("emoji", "packages"): LOCAL,
    ("openclipart", "out"): BUCKET, ("openclipart", "packages"): LOCAL,
    ("scenes", "out"): BUCKET,
    ("train_tokenizer", "out"): BUCKET, ("train_tokenizer", "records"): BUCKET, ("train_tokenizer", "text"): LOCAL,
    ("prepare", "out"): LOCAL, ("prepare", "input"): LOCAL, ("prepare", "class_names"): LOCAL,
    ("prepare", "image_root"): LOCAL, ("prepare", "data_dir"): LOCAL, ("prepare", "decontaminate"): LOCAL,
    ("prepare", "clip_model"): LOCAL, ("prepare", "balance_entries"): LOCAL,
}  # fmt: skip


def refused_by_pipeline(name, flag, value, folder, monkeypatch, capsys) -> str:
    monkeypatch.chdir(folder)
    module = "data_pipelines.prepare.__main__" if name == "prepare" else f"data_pipelines.{name}"
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main([f"--{flag}={value}"])
    assert end.value.code == 2 and not list(folder.iterdir())
    return capsys.readouterr().err


@pytest.mark.parametrize("name,flag", PIPELINES)
def test_a_pipeline_refuses_a_path_in_no_known_place(name, flag, tmp_path, monkeypatch, capsys):
    for value in ("hdfs://name/x", "gs:/name/x"):
        shown = refused_by_pipeline(name, flag, value, tmp_path, monkeypatch, capsys)
        assert f"argument --{flag}: {value}: the scheme" in shown
    if PIPELINES[name, flag] == LOCAL:
        shown = refused_by_pipeline(name, flag, "gs://bucket/x", tmp_path, monkeypatch, capsys)
        assert f"argument --{flag}: gs://bucket/x is in a bucket; expected a path of this machine." in shown


def test_every_path_of_a_pipeline_is_in_the_table():
    words = re.compile(r"path|folder|file|dir|table\b|records\b|images\b", re.IGNORECASE)
    kinds = (pipeline.output_path, pipeline.local_path)
    for name in {name for name, _ in PIPELINES} - {"prepare"}:
        parsers = []

        def note(build, parser, *_, parsers=parsers):
            parsers.append(parser)

        module = importlib.import_module(f"data_pipelines.{name}")
        run = pipeline.run
        try:
            pipeline.run = note
            module.main([])
        finally:
            pipeline.run = run
        for action in parsers[0]._actions:
            if action.type in kinds:
                assert (name, action.dest) in PIPELINES
            elif action.type is None and action.option_strings and action.nargs != 0:
                assert not words.search(action.dest) or action.choices, f"{name} --{action.dest}"


def test_storage_errors_of_flags_name_the_flag():
    with pytest.raises(StorageError, match=r"^--out=hdfs://x/y: the scheme hdfs:// is not supported"):
        bucket_paths.check_paths([("--out", "hdfs://x/y")])


def test_the_commands_that_read_an_experiment_check_its_paths(monkeypatch, tmp_path):
    """All read it by one function, which check_config is part of."""
    for command in COMMANDS:
        module = importlib.import_module(COMMANDS[command][0])
        reads = [name for name in ("from_config_dict", "from_eval_config") if hasattr(module, name)]
        assert not reads or command == "plan", f"{command} reads an experiment past cli.experiment_of"
    assert cli.experiment_of
