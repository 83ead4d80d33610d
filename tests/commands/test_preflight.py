"""What cannot run is refused before anything is compiled, and before a checkpoint is touched."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clipjax.commands import embed, export, train
from clipjax.commands import eval as evaluate
from clipjax.commands.preflight import Preflight
from clipjax.config import ConfigError, MixturePart, SourceConfig, from_config_dict, to_config_dict
from clipjax.data.bad_records import DataError
from clipjax.data.embeddings import Row, write_embeddings
from clipjax.data.pipeline import changed_data, checksums
from clipjax.data.records import ManifestError, encode_record
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.write import write_records
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from clipjax.interop.names import InteropError
from clipjax.mesh import make_mesh
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.fingerprint import FingerprintError, fingerprint
from clipjax.runs.integrity import CheckpointError
from clipjax.runs.run import refuse_as_workdir
from clipjax.runs.steps import ORBAX_METADATA
from clipjax.training.precomputed import image_settings
from clipjax.training.state import abstract_state, eval_variables
from tests import runs
from tests.data.samples import encoded, picture


def zeros(config, mesh, step):
    """A TrainState of zeros at a step, made without compiling."""
    make = lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)  # noqa: E731
    state = jax.tree.map(make, abstract_state(config, mesh))
    return state.replace(step=jax.device_put(np.int32(step), state.step.sharding))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, a run at step 6 of 12 in `run`, weights alone in `weights`; nothing compiled."""
    path = tmp_path_factory.mktemp("preflight")
    runs.build_data(path)
    config = from_config_dict(runs.run_config(path))
    mesh = make_mesh(config.mesh)
    own = fingerprint(config, make_tokenizer(config.tokenizer, config.model.text.context_length))
    data_state = {"step": 6, "read": 96, "bad": {}, "records": 64, "sha256": {"train": "0"}}
    with checkpoints.open_checkpoints(path / "run", config.checkpoint) as manager:
        checkpoints.save(manager, zeros(config, mesh, 6), data_state=data_state, config=config, fingerprint=own)
    weights = eval_variables(zeros(config, mesh, 0))
    checkpoints.save_weights(path / "weights", weights, config=config, fingerprint=own)
    records(path / "unlabelled", 12)
    records(path / "numbered", 12, labels=True)
    records(path / "named", 12, labels=True, names=("a", "b", "c"))
    for name, embed_dim, count in (("wide", 64, 64), ("short", 32, 12)):
        made_by = image_settings(config, own) | {"embed_dim": embed_dim, "dtype": "float32"}
        write_embeddings(path / name, iter([Row("key", np.ones(embed_dim))] * count), made_by)
    for count in (2, 3):
        (path / f"{count}_names.txt").write_text("".join(f"{name}\n" for name in "abc"[:count]))
    return path


def records(path, count, labels=False, names=()):
    image = encoded(picture(), "PNG")
    rows = [encode_record(image, ["a cat"], key=str(i), label=i % 3 if labels else None) for i in range(count)]
    write_records(path, {"train": rows}, name="test", class_names=names, source={})


@pytest.fixture
def no_compiling(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was compiled")

    jitted = lambda *_, **__: SimpleNamespace(lower=refuse, __call__=refuse)  # noqa: E731
    monkeypatch.setattr(jax, "jit", jitted)
    monkeypatch.setattr(train, "compile_step", refuse)


def changed(folder, **values):
    """The configuration of `run` with other values; "__" stands for "."."""
    config = runs.run_config(folder)
    for name, value in values.items():
        *sections, last = name.split("__")
        section = config
        for one in sections:
            section = section[one]
        setattr(section, last, value)
    return config


def zero_shot(folder, name="named", **options):
    return {"eval__evaluators": {"x": to_config_dict(ZeroShotConfig(source=source(folder, name), **options))}}


def source(folder, name):
    return SourceConfig(path=str(folder / name))


def lit(folder, embeddings):
    frozen = {"optimizer__image_lr_multiplier": 0.0, "data__augment__name": "none"}
    return frozen | {"data__image_embeddings": str(folder / embeddings)}


RESTARTS = {  # of the workdir `run`
    "another batch": (lambda f: {"global_batch_size": 32}, ConfigError, "global_batch_size=16.*is now 32"),
    "another width": (
        lambda f: {"model__text__width": 64},
        FingerprintError,
        r"config\.model\.text\.width: checkpoint 32",
    ),
    "a frozen tower": (lambda f: {"optimizer__image_lr_multiplier": 0.0}, ConfigError, "is now 0.0: what is frozen"),
    "another seed": (lambda f: {"seed": 3}, ConfigError, "seed=0, config.seed is now 3"),
    "another split": (lambda f: {"data__train__split": "validation"}, ConfigError, "split='train'"),
    "another loss": (lambda f: {"loss__name": "softmax"}, ConfigError, "loss.name='sigmoid'"),
    "averages": (lambda f: {"optimizer__ema_decay": 0.9}, ConfigError, "is now 0.9: averages are kept"),
    "fewer records": (lambda f: {"data__train__path": str(f / "named")}, DataError, "on 64 records.* now has 12"),
}
STARTS = {  # of a new workdir
    "init_from nowhere": (lambda f: {"init_from": str(f / "no")}, CheckpointError, "init_from=.*no does not exist"),
    "init_from a step": (
        lambda f: {"init_from": str(f / "run" / "checkpoints" / "6")},
        CheckpointError,
        "is one checkpoint of a run: name the run's folder .*/run, with --step=6",
    ),
    "init_from another width": (
        lambda f: {"init_from": str(f / "run"), "model__text__width": 64},
        CheckpointError,
        "does not fit the configuration",
    ),
    "init_from another architecture": (
        lambda f: {"init_from": str(f / "run"), "model__image__name": "resnet", "model__image__image_size": 32},
        (CheckpointError, FingerprintError),
        "init_from=",
    ),
    "no teacher": (
        lambda f: {"loss__name": "distill", "loss__teacher": str(f / "no")},
        CheckpointError,
        "config.loss.teacher=.*no does not exist",
    ),
    "a teacher that is published weights": (
        lambda f: {"loss__name": "distill", "loss__teacher": published(f)},
        CheckpointError,
        "clipjax import",
    ),
    "wider embeddings": (lambda f: lit(f, "wide"), ConfigError, "embed_dim: embedded with 64, this experiment has 32"),
    "embeddings of fewer records": (lambda f: lit(f, "short"), ConfigError, "12 records"),
    "records for embeddings": (lambda f: lit(f, "named"), ConfigError, "records but no embeddings"),
    "no embeddings": (lambda f: lit(f, "no"), ConfigError, "image_embeddings=.*no is not a finished.*clipjax embed"),
    "no class names": (lambda f: zero_shot(f, "numbered"), ConfigError, "evaluators.x: .*names no classes"),
    "no labels": (lambda f: zero_shot(f, "unlabelled"), ConfigError, "evaluators.x: "),
    "two kinds of prompts": (
        lambda f: zero_shot(f, templates=("{}",), templates_file="x.txt"),
        ConfigError,
        "evaluators.x: templates=.* and templates_file='x.txt' are both set",
    ),
    "a template without braces": (lambda f: zero_shot(f, templates=("a",)), ConfigError, "Template 'a' has no {}"),
    "no file of names": (lambda f: zero_shot(f, class_names=str(f / "no.txt")), ConfigError, "no.txt' is not a file"),
    "a short file of names": (
        lambda f: zero_shot(f, class_names=str(f / "2_names.txt")),
        ConfigError,
        "evaluators.x: .*2_names",
    ),
    "a file of names shorter than the labels": (
        lambda f: zero_shot(f, "numbered", class_names=str(f / "2_names.txt")),
        ConfigError,
        "evaluators.x: .*has the label 2, but there are 2 class names",
    ),
    "no evaluation data": (lambda f: zero_shot(f, "no"), ManifestError, "evaluators.x: .*does not exist"),
    "a metric that nobody reports": (
        lambda f: {"checkpoint__best_metric": "retrieval/r1"},
        ConfigError,
        "best_metric='retrieval/r1' is not reported. Did you mean 'retrieval/",
    ),
    "a large vocabulary": (lambda f: {"model__text__vocab_size": 100}, ConfigError, "has 128 pieces, more than"),
    "a tokenizer that ends no text": (
        lambda f: {"tokenizer__add_eos": False, "model__text__pool": "eos", "model__text__eos_id": 1},
        ConfigError,
        "pool='eos' looks for id 1, but the tokenizer makes .* of 'a': no text ends",
    ),
    "an end of text that becomes padding": (
        lambda f: {"tokenizer__eos_to_pad": True, "model__text__pool": "eos", "model__text__eos_id": 1},
        ConfigError,
        "pool='eos' looks for id 1, but the tokenizer makes .* of 'a': no text ends",
    ),
    "another padding": (
        lambda f: {"model__text__pad_id": 7, "model__text__pool": "cls", "model__text__causal": True},
        ConfigError,
        "text.pad_id=7 is what pool='cls' takes for padding, but the tokenizer pads with",
    ),
    "no tokenizer": (lambda f: {"tokenizer__path": "no.model"}, ConfigError, "tokenizer.path='no.model'"),
    "no training data": (
        lambda f: {"data__train__path": str(f / "no")},
        ManifestError,
        "config.data.train: .*no/manifest",
    ),
    "no path of training data": (lambda f: {"data__train__path": ""}, ConfigError, "config.data.train: .*needs a path"),
    "no path of a part": (
        lambda f: {"data__train__path": "", "data__mixture": {"a": to_config_dict(MixturePart())}},
        ConfigError,
        r"config\.data\.mixture\.a\.source: .*needs a path",
    ),
    "init_from before its first checkpoint": (
        lambda f: {"init_from": unfinished(f)},
        CheckpointError,
        "init_from=.*/unfinished/checkpoints is empty: the run has saved no checkpoint",
    ),
}
WORKDIRS = {
    "weights": (CheckpointError, "weights but no training state.*init_from"),
    "run/checkpoints": (CheckpointError, "folder of checkpoints: name the run's folder .*/run"),
    "run/checkpoints/6": (CheckpointError, "is one checkpoint of a run"),
    "run/checkpoints/6/params/d": (CheckpointError, "/d is inside the run .*/run; .* --workdir=.*/d"),
    "run/checkpoints/7": (CheckpointError, "/7 is inside the run .*/run; "),
    "run/new": (CheckpointError, "/new is inside the run .*/run; expected a folder outside other runs"),
    "run/other/../eval/new": (CheckpointError, "is inside the run .*/run; "),
}


def published(folder):
    (folder / "published").mkdir(exist_ok=True)
    (folder / "published" / "model.safetensors").touch()
    return str(folder / "published")


def unfinished(folder):
    (folder / "unfinished" / "checkpoints").mkdir(parents=True, exist_ok=True)
    return str(folder / "unfinished")


def tree_of(path):
    return {file: file.stat().st_mtime_ns for file in path.rglob("*")}


@pytest.mark.parametrize("name", RESTARTS)
def test_a_restart_that_cannot_go_on_is_refused_before_compiling(name, folder, no_compiling):
    values, error, message = RESTARTS[name]
    before = tree_of(folder / "run" / "checkpoints")
    with pytest.raises(error, match=f"(?s){message}"):
        train.run(from_config_dict(changed(folder, **values(folder))), folder / "run")
    assert tree_of(folder / "run" / "checkpoints") == before
    assert not (folder / "run" / "config.json").exists()


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_cannot_be_made_is_refused_before_compiling(name, folder, no_compiling, tmp_path):
    values, error, message = STARTS[name]
    with pytest.raises(error, match=f"(?s){message}"):
        train.run(from_config_dict(changed(folder, **values(folder))), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("name", WORKDIRS)
def test_a_workdir_that_is_not_a_runs_is_refused_before_compiling(name, folder, no_compiling):
    error, message = WORKDIRS[name]
    before = {*tree_of(folder / name)}
    with pytest.raises(error, match=f"(?s){message}"):
        train.run(from_config_dict(changed(folder)), folder / name)
    assert {*tree_of(folder / name)} - before <= {folder / name / "run.lock"}
    assert name == "weights" or {*tree_of(folder / name)} == before


def test_folders_beside_a_run_and_runs_that_lie_in_one_already_are_workdirs(folder, tmp_path):
    refuse_as_workdir(folder / "run" / ".." / "new")
    for file in ("refused/run.lock", "begun/run.lock", "begun/config.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    refuse_as_workdir(tmp_path / "refused" / "new")
    with pytest.raises(CheckpointError, match="is inside the run .*/begun; "):
        refuse_as_workdir(tmp_path / "begun" / "checkpoints")
    shutil.copytree(folder / "run" / "checkpoints", tmp_path / "begun" / "nested" / "checkpoints")
    refuse_as_workdir(tmp_path / "begun" / "nested")
    foreign = tmp_path / "foreign" / "checkpoints" / "3"
    foreign.mkdir(parents=True)
    (foreign / ORBAX_METADATA).touch()
    refuse_as_workdir(tmp_path / "foreign" / "new")


def test_a_wrong_restart_leaves_damaged_checkpoints_where_they_are(folder, no_compiling, tmp_path):
    for step in ("6", "12"):
        shutil.copytree(folder / "run" / "checkpoints" / "6", tmp_path / "checkpoints" / step)
    largest = max((tmp_path / "checkpoints" / "12" / "params").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"")
    with pytest.raises(ConfigError, match="seed=0"):
        train.run(from_config_dict(changed(folder, seed=1)), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "6"]


def test_evaluation_is_refused_before_compiling(folder, no_compiling, tmp_path):
    run = folder / "run"
    for values, message in [
        *(
            (values(folder), message)
            for values, _, message in (STARTS[n] for n in STARTS if "templ" in n or "nam" in n)
        ),
        ({"eval__evaluators": {}}, "evaluators is empty"),
        (zero_shot(folder, "no"), "evaluators.x: .*does not exist"),
        ({"model__text__vocab_size": 100}, "has 128 pieces"),
    ]:
        with pytest.raises((ConfigError, ManifestError), match=f"(?s){message}"):
            evaluate.run(run, config=from_config_dict(changed(folder, **values)))
    with pytest.raises(CheckpointError, match="--checkpoint takes.*published weights.*clipjax import"):
        evaluate.run(published(folder))
    with pytest.raises(CheckpointError, match="name the run's folder .*/run, with --step=6"):
        evaluate.run(run / "checkpoints" / "6")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out: .*file is not a folder"):
        evaluate.run(run, out=tmp_path / "file" / "out")


def test_embedding_is_refused_before_compiling(folder, no_compiling, tmp_path):
    values = lit(folder, "unused") | {"data__image_embeddings": ""}

    def config(**more):
        return from_config_dict(changed(folder, **values, **more))

    with pytest.raises(CheckpointError, match="config.init_from=.*no does not exist"):
        embed.run(config(init_from=str(folder / "no")), "image", tmp_path / "out")
    with pytest.raises(ConfigError, match="has 128 pieces"):
        embed.run(config(model__text__vocab_size=100), "image", tmp_path / "out")
    with pytest.raises(ManifestError, match="(?s)other settings:.*embed_dim: 64 there, 32 now"):
        embed.run(config(), "image", folder / "wide")
    with pytest.raises(ConfigError, match="records but no embeddings"):
        embed.run(config(), "image", folder / "named")
    with pytest.raises(CheckpointError, match="config.loss.teacher=.*no does not exist"):
        embed.run(config(loss__name="distill", loss__teacher=str(folder / "no")), "teacher", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_export_is_refused_before_weights_are_read(folder, no_compiling, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "restore_variables", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match="holds no checkpoints.*no does not exist"):
        export.run(folder / "no", tmp_path / "out", format="hf")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="DST: .*file is not a folder"):
        export.run(folder / "run", tmp_path / "file" / "out", format="hf")
    with pytest.raises(InteropError):
        export.run(folder / "run", tmp_path / "out", format="open_flip")


def test_a_finished_run_says_so_and_compiles_nothing(folder, no_compiling, capsys, tmp_path):
    shutil.copytree(folder / "run" / "checkpoints", tmp_path / "checkpoints")
    lines = [{"step": 3, "zero_shot/top1": 0.1}, {"step": 6, "loss": 1.0}, {"step": 6, "zero_shot/top1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = tree_of(tmp_path)
    config = changed(folder, total_steps=6)
    assert train.run(from_config_dict(config), tmp_path) == {"zero_shot/top1": 0.5}
    shown = capsys.readouterr().out
    assert f"{tmp_path} is finished at step 6 (config.total_steps=6); nothing to train: raise config.total" in shown
    assert str(tmp_path / "metrics.jsonl") in shown
    assert tree_of(tmp_path) == before | {tmp_path / "run.lock": (tmp_path / "run.lock").stat().st_mtime_ns}
    with pytest.raises(ConfigError, match="seed=0"):
        train.run(from_config_dict(changed(folder, total_steps=6, seed=1)), tmp_path)


def test_a_restart_on_other_records_of_the_same_number_says_so(folder, no_compiling, capsys):
    preflight = Preflight(from_config_dict(changed(folder)), folder / "run")
    preflight.check_training_data()
    assert "The records of train are not those that the checkpoint was trained on" in capsys.readouterr().out
    assert changed_data({"sha256": checksums(preflight.source)}, preflight.source) == ""
    assert changed_data({"step": 3}, preflight.source) == "", "a checkpoint from before there were checksums"


def test_a_workdir_that_is_a_file_is_told_by_check(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--workdir: .*file is not a folder"):
        Preflight(from_config_dict(changed(folder)), tmp_path / "file").check_workdir()


@pytest.mark.slow
def test_a_finished_run_that_was_killed_before_its_picture_draws_it_without_compiling_a_step(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "compile_step", lambda *_: pytest.fail("compiled a step"))
    shutil.copytree(folder / "run" / "checkpoints", tmp_path / "checkpoints")
    lines = [{"step": step, "loss": 1.0 / step} for step in range(1, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "snapshots").mkdir()
    config = from_config_dict(changed(folder, total_steps=6, log__figures=True))
    results = train.run(config, tmp_path)
    assert (tmp_path / "summary.png").exists() and (tmp_path / "report.html").exists()
    for name, evaluator in config.eval.evaluators.items():
        own = {key.partition("/")[2] for key in results if key.startswith(f"{name}/")}
        assert own == set(evaluator.metrics), "evaluators report what they declare"


def test_evaluators_report_the_metrics_that_they_declare(folder):
    """Otherwise config.checkpoint.best_metric would be refused, or accepted, wrongly."""
    names = RetrievalConfig(all_captions=True).metrics
    assert len(names) == len(set(names)) == 3 * 11 + 5 and {"captions", "distinct_pairs"} < set(names)
    assert "captions" not in RetrievalConfig().metrics


def test_a_meta_of_another_program_is_refused(folder):
    manager = SimpleNamespace(directory="x", restore=lambda *_, **__: {"meta": {"config": {}}})
    with pytest.raises(CheckpointError, match="x/3 is not a checkpoint of clipjax"):
        checkpoints.read_meta(manager, 3)


def test_a_configuration_on_other_devices_is_still_refused_first(folder, no_compiling, tmp_path):
    config = from_config_dict(changed(folder))
    with pytest.raises(ConfigError, match="global_batch_size=12 does not divide"):
        train.run(dataclasses.replace(config, global_batch_size=12), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_workdir_without_a_name_or_with_one_too_long_is_one_line(folder, no_compiling, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = runs.write_experiment(folder)
    for workdir, code, message in (
        ("", 2, "--workdir= is empty; give it a value."),
        ("a" * 300, 1, "File name too long."),
    ):
        with pytest.raises(SystemExit) as end:
            train.main(["train", f"--config={experiment}", f"--workdir={workdir}"])
        shown = capsys.readouterr().err.strip()
        assert end.value.code == code and shown.endswith(message) and len(shown.splitlines()) == 1
    assert not list(tmp_path.iterdir())
