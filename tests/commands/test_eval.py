"""clipjax eval: files with evaluators alone, sets that are absent or broken, results written one by one."""

import json
import shutil
from pathlib import Path

import pytest

from clipjax.commands import eval as eval_command
from clipjax.commands import watch
from clipjax.config import ConfigError, SourceConfig, eval_config, from_eval_config, to_config_dict
from clipjax.data.records import ManifestError
from clipjax.data.sources import WebDatasetConfig
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from clipjax.inference import comparable, evaluate
from clipjax.runs import CheckpointError, open_run, read_metrics
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.checkpoint import save_weights
from tests.eval import wds_sets
from tests.eval_runs import fake_embed, run_of, save_steps, start_of
from tests.runs import build_data

NAMES = {"templates": ("a {}",)}


@pytest.fixture(autouse=True)
def no_layers(monkeypatch):
    monkeypatch.setattr(evaluate, "make_embed", fake_embed)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run with averages that differ from its parameters, and an import of the same weights."""
    folder = tmp_path_factory.mktemp("runs")
    config = run_of(data, optimizer__ema_decay=0.9)
    save_steps(folder / "run", config, start_of(config), [6])
    with open_run(folder / "run") as run:
        from clipjax.mesh import make_mesh

        variables = run.variables(make_mesh(config.mesh))
        plain = run_of(data, eval__evaluators={})
        save_weights(folder / "import", variables, config=plain, fingerprint=run.fingerprint)
    return folder


def sets(root: Path, **more) -> object:
    """An evaluation of a classification set and what else is given, by the names of their folders."""
    config = eval_config()
    found = {
        "cats": ZeroShotConfig(source=WebDatasetConfig(path=str(root / "wds_cats"), split="test"), **NAMES),
        **more,
    }
    config.eval.evaluators = {name: to_config_dict(evaluator) for name, evaluator in found.items()}
    config.eval.batch_size = 16
    return config


def wds(root: Path, name: str) -> WebDatasetConfig:
    return WebDatasetConfig(path=str(wds_sets.folder_of(root, name)), split="test")


def test_an_eval_file_takes_model_tokenizer_and_pixels_from_a_run_and_from_an_import(trained, tmp_path, capsys):
    wds_sets.write_classification(tmp_path)
    config = from_eval_config(sets(tmp_path))
    documents = [eval_command.run(trained / name, config=config, out=tmp_path / name) for name in ("run", "import")]
    assert documents[0]["results"]["cats"] == documents[1]["results"]["cats"]
    assert documents[0]["results"]["cats"]["examples"] == 9
    provenance = [document["provenance"]["cats"] for document in documents]
    assert [one["weights"] for one in provenance] == ["average", "raw"]
    assert comparable(*provenance) == {"weights": ("average", "raw")}
    assert comparable(*provenance, across_models=True) == {}
    split = provenance[0]["split"]["source"]
    assert (split["records"], split["read"]) == (9, 9)
    assert provenance[0]["prompts"]["count"] == 3
    assert provenance[0]["tokenizer"]["context_length"] == 8
    assert "Wrote" in capsys.readouterr().out


def test_other_records_prompts_or_tie_rules_are_not_comparable(trained, tmp_path):
    wds_sets.write_classification(tmp_path)
    first = eval_command.run(trained / "run", config=from_eval_config(sets(tmp_path)), out=tmp_path / "a")
    other = sets(tmp_path)
    other.eval.evaluators.cats.templates = ("the {}",)
    wds_sets.write_classification(tmp_path / "b", labels=[0, 1, 2, 2, 1, 0])
    other.eval.evaluators.cats.source.path = str(tmp_path / "b" / "wds_cats")
    second = eval_command.run(trained / "run", config=from_eval_config(other), out=tmp_path / "c")
    a, b = first["provenance"]["cats"], second["provenance"]["cats"]
    names = {name for name in comparable(a, b) if not name.startswith("evaluator.")}
    assert {"prompts.sha256", "prompts.templates", "split.source.sha256", "split.source.records"} <= names
    assert comparable({**a, "ties": "first"}, a) == {"ties": ("first", "against")}
    assert comparable(a, {**a, "date": "another", "software": {}, "checkpoint": {}}) == {}
    with_file = [{**a, "evaluator": {**a["evaluator"], "skip_groups_sha256": content}} for content in ("1", "2")]
    assert set(comparable(*with_file)) == {"evaluator.skip_groups_sha256"}
    assert comparable(a, with_file[0]) == {}, "an earlier version's result has no such checksum"


def test_results_are_not_computed_twice_unless_something_changed_or_redo_asks(trained, tmp_path, capsys):
    wds_sets.write_classification(tmp_path)
    wds_sets.write_retrieval(tmp_path)
    config = from_eval_config(sets(tmp_path, pairs=RetrievalConfig(source=wds(tmp_path, "flickr8k"))))
    out = tmp_path / "out"

    def evaluate(**options):
        document = eval_command.run(trained / "run", config=config, out=out, **options)
        printed = capsys.readouterr().out
        return document["results"], {name for name in ("cats", "pairs") if f"{name}: " in printed and "before" in next(
            line for line in printed.splitlines() if line.startswith(f"{name}: ")
        )}  # fmt: skip

    first, reused = evaluate()
    assert reused == set()
    again, reused = evaluate()
    assert (again, reused) == (first, {"cats", "pairs"})
    assert list(again["cats"]) == list(first["cats"])  # the order of the table
    wds_sets.write_classification(tmp_path, labels=[0, 0, 0, 0, 0, 0, 0, 0, 1])
    changed, reused = evaluate()
    assert reused == {"pairs"} and changed["cats"] != first["cats"]
    _, reused = evaluate(redo=True)
    assert reused == set()
    (out / "evaluators" / "cats.json").write_text("{torn")
    _, reused = evaluate()
    assert reused == {"pairs"}


def test_absent_sets_are_listed_and_a_broken_one_does_not_stop_the_others(trained, tmp_path, capsys):
    wds_sets.write_classification(tmp_path)
    late = wds_sets.write_classification(tmp_path, "late")
    wds_sets.write_split(late, "test", [{"png": b"no image", "cls": b"0"}])  # seen when it is evaluated
    broken = wds_sets.write_classification(tmp_path, "cut")
    shutil.rmtree(broken / "test")
    more = {name: ZeroShotConfig(source=wds(tmp_path, name), **NAMES) for name in ("cut", "late", "gone", "other_gone")}
    config = sets(tmp_path, **more)
    config.absent = config.broken = "skip"
    document = eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path / "out")
    assert set(document["results"]) == {"cats"}
    assert set(document["broken"]) == {"cut", "late"} and set(document["absent"]) == {"gone", "other_gone"}
    printed = capsys.readouterr().out
    assert "Absent, 2: gone, other_gone" in printed and "Broken: cut:" in printed
    with pytest.raises(
        eval_command.EvaluationError, match=r"2 evaluators have no result \(1 have\):\n  cut: .*\n  late: "
    ):
        eval_command.refuse_broken(document)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["broken"].keys() == {"cut", "late"} and written["results"]["cats"]["examples"] == 9

    config.broken = "refuse"
    with pytest.raises(ManifestError, match="config.eval.evaluators.cut: "):
        eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path / "out")
    config.absent = "refuse"
    del config.eval.evaluators["cut"], config.eval.evaluators["late"]
    with pytest.raises(ManifestError, match=r"config.eval.evaluators.gone: .*wds_gone"):
        eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path / "out")


def test_nothing_to_evaluate_is_refused(trained, tmp_path):
    config = sets(tmp_path)
    config.absent = "skip"
    with pytest.raises(ConfigError, match=r"none of the data is there. Expected, for example, .*wds_cats"):
        eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="has none of its own: there is nothing to evaluate. Name an evaluation"):
        eval_command.run(trained / "import", out=tmp_path / "out")
    config.suite = "datacmp"
    with pytest.raises(ConfigError, match="config.suite='datacmp' is unknown. Did you mean 'datacomp'?"):
        eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path / "out")


def test_averages_and_parameters_can_both_be_evaluated(trained, data, tmp_path):
    config = eval_config()
    source = SourceConfig(path=str(data / "scenes"), split="validation")
    config.eval.evaluators = {"pairs": to_config_dict(RetrievalConfig(source=source))}
    config.eval.update(batch_size=16, weights="both")
    document = eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path, model="tiny")
    assert set(document["results"]) == {"pairs", "pairs_raw"}
    assert [document["provenance"][name]["weights"] for name in ("pairs", "pairs_raw")] == ["average", "raw"]
    checksums = {document["provenance"][name]["checkpoint"]["weights_sha256"] for name in ("pairs", "pairs_raw")}
    assert len(checksums) == 2
    config.eval.weights = "raw"
    raw = eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path / "raw")
    assert raw["results"]["pairs"] == document["results"]["pairs_raw"]
    config.eval.evaluators["pairs_raw"] = config.eval.evaluators["pairs"]
    config.eval.weights = "both"
    with pytest.raises(ConfigError, match="pairs_raw has the name that config.eval.weights='both' gives"):
        eval_command.run(trained / "run", config=from_eval_config(config), out=tmp_path / "raw")


def test_a_checkpoint_that_its_run_removes_meanwhile_gives_way_to_the_newest_or_is_told(
    data, tmp_path, monkeypatch, capsys
):
    config, workdir = run_of(data), tmp_path / "run"
    save_steps(workdir, config, start_of(config), [3, 6])
    read = checkpoints.restore_variables

    def vanishing(manager, step, *args, **kwargs):
        if step == 6:
            shutil.rmtree(workdir / "checkpoints" / "6")
            raise ValueError("an array is not there")
        return read(manager, step, *args, **kwargs)

    shutil.copytree(workdir / "checkpoints" / "6", tmp_path / "6")
    monkeypatch.setattr(checkpoints, "restore_variables", vanishing)
    eval_command.run(workdir)
    assert [path.name for path in (workdir / "eval").glob("*/results.json")] == ["results.json"]
    assert (workdir / "eval" / "3" / "results.json").exists()
    assert "6 was removed while it was being read; trying the newest instead." in capsys.readouterr().out
    (tmp_path / "6").rename(workdir / "checkpoints" / "6")
    with pytest.raises(CheckpointError, match="6 was removed while it was being read: a running run keeps"):
        eval_command.run(workdir, step="6")


def test_results_on_data_that_a_user_points_at_stay_beside_the_runs_own(trained, data, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    own = run / "eval" / "6"
    monkeypatch.setattr(watch.Watcher, "_is_last", lambda self, step: True)
    eval_command.main(["eval", f"--checkpoint={run}"])
    before = {name: (own / name).read_bytes() for name in ("results.json", "report.html")}
    capsys.readouterr()
    for split in ("train", "validation"):
        eval_command.main(["eval", f"--checkpoint={run}", f"--data={data / 'scenes'}", f"--split={split}"])
        assert (
            f"Wrote {own}/scenes_{split}/results.json and {own}/scenes_{split}/report.html" in capsys.readouterr().out
        )
    assert {name: (own / name).read_bytes() for name in before} == before
    assert set(json.loads((own / "scenes_train" / "results.json").read_text())["results"]) >= {"scenes_train"}
    eval_command.main(["eval", f"--checkpoint={run}", "--watch"])
    eval_command.main(["eval", f"--checkpoint={run}", f"--data={data / 'scenes'}", "--split=train", "--watch"])
    assert {name: (own / name).read_bytes() for name in before} == before, "nor does --watch repeat what is there"
    (line,) = read_metrics(run / "eval")
    names = {name.partition("/")[0] for name in line}
    assert names >= {"scenes_train", *json.loads(before["results.json"])["results"]}


def test_data_of_the_same_name_elsewhere_do_not_replace_results(trained, data, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.setattr(watch.Watcher, "_is_last", lambda self, step: True)
    for place in ("a", "b"):
        shutil.copytree(data / "scenes", tmp_path / place / "scenes")
    results = run / "eval" / "6" / "scenes_validation" / "results.json"
    monkeypatch.chdir(tmp_path / "a")
    command = ["eval", f"--checkpoint={run}", "--data=scenes", "--split=validation"]
    eval_command.main(command)
    before = results.read_bytes()
    monkeypatch.chdir(tmp_path / "b")
    capsys.readouterr()
    for more in ([], ["--redo"], ["--watch", "--redo"], [f"--out={results.parent}"]):
        with pytest.raises(SystemExit):
            eval_command.main([*command, *more])
        shown = capsys.readouterr().err
        assert f"has results on {tmp_path}/a/scenes, and --data names {tmp_path}/b/scenes" in shown
        assert "Name another folder with --out" in shown and results.read_bytes() == before
    eval_command.main([*command, f"--out={tmp_path / 'out'}"])
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    eval_command.main([*command, f"--data={tmp_path / 'b' / 'link' / 'scenes'}"])
    shutil.rmtree(tmp_path / "a")
    eval_command.main(command)
    assert "evaluated before" in capsys.readouterr().out, "the same data, moved"
