"""Results that `clipjax eval` takes instead of evaluating again, and what makes them other ones."""

import json
import os
import shutil

import pytest

from clipjax.commands import eval as eval_command
from clipjax.config import ConfigError, eval_config, from_eval_config
from clipjax.data.sources import FolderConfig, HardNegativesConfig, HeldOutConfig, open_source
from clipjax.eval import CompositionalConfig, RetrievalConfig, ZeroShotConfig
from clipjax.inference import evaluate, provenance
from clipjax.report.published import refuse_one_file
from tests.data.samples import encoded, picture
from tests.eval_runs import fake_embed, run_of, save_steps, start_of
from tests.runs import build_data


@pytest.fixture(autouse=True)
def no_layers(monkeypatch):
    monkeypatch.setattr(evaluate, "make_embed", fake_embed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    build_data(folder)
    config = run_of(folder)
    save_steps(folder / "run", config, start_of(config), [6])
    return folder / "run"


@pytest.fixture
def table(tmp_path):
    lines = ["image,caption,other"]
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(number), "PNG"))
        lines.append(f"{number}.png,picture {number},another {number}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


def evaluated(trained, out, capsys, **evaluators):
    """Names of the evaluators whose stored results were taken."""
    config = eval_config()
    config.eval.evaluators = evaluators
    config.eval.batch_size = 16
    eval_command.run(trained, config=from_eval_config(config), out=out)
    lines = capsys.readouterr().out.splitlines()
    return {name for name in evaluators if any(line.startswith(f"{name}: ") and "before" in line for line in lines)}


def test_another_option_of_the_source_is_another_result(trained, table, tmp_path, capsys):
    def pairs(**options):
        return RetrievalConfig(source=FolderConfig(path=str(table), **options))

    assert evaluated(trained, tmp_path / "out", capsys, pairs=pairs()) == set()
    assert evaluated(trained, tmp_path / "out", capsys, pairs=pairs()) == {"pairs"}
    assert evaluated(trained, tmp_path / "out", capsys, pairs=pairs(text_key="other")) == set()
    assert evaluated(trained, tmp_path / "out", capsys, pairs=pairs(text_key="other")) == {"pairs"}
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (table, *tmp_path.glob("*.png")):
        shutil.move(file, moved / file.name)
    there = RetrievalConfig(source=FolderConfig(path=str(moved / "t.csv"), text_key="other"))
    assert evaluated(trained, tmp_path / "out", capsys, pairs=there) == {"pairs"}, "the same data, moved"


@pytest.mark.parametrize("held_out", [False, True])
def test_another_image_of_a_table_is_another_result(held_out, trained, table, tmp_path, capsys):
    source = FolderConfig(path=str(table))
    if held_out:
        source = HeldOutConfig(path=str(table), split="validation", every=3, source=source)
    pairs = RetrievalConfig(source=source)
    assert evaluated(trained, tmp_path / "out", capsys, pairs=pairs) == set()
    assert evaluated(trained, tmp_path / "out", capsys, pairs=pairs) == {"pairs"}
    shutil.copy(tmp_path / "0.png", tmp_path / "2.png")
    os.utime(tmp_path / "2.png", (1, 1))
    assert evaluated(trained, tmp_path / "out", capsys, pairs=pairs) == set()


def test_the_content_of_a_file_that_an_evaluator_names_counts(trained, table, tmp_path, capsys):
    rows = [
        {
            "image": f"{number}.png",
            "caption": "right",
            "negative": ["wrong"],
            "group": "colour" if number % 2 else "shape",
        }
        for number in range(6)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    (tmp_path / "skip.txt").write_text("colour\n")
    source = HardNegativesConfig(
        path=str(tmp_path / "pairs.json"),
        image_key="image",
        text_key="caption",
        negative_key="negative",
        label_key="group",
    )
    one = CompositionalConfig(source=source, skip_groups=str(tmp_path / "skip.txt"), min_group=1)
    assert evaluated(trained, tmp_path / "out", capsys, one=one) == set()
    assert evaluated(trained, tmp_path / "out", capsys, one=one) == {"one"}
    (tmp_path / "skip.txt").write_text("shape\n")
    assert evaluated(trained, tmp_path / "out", capsys, one=one) == set()
    os.utime(tmp_path / "1.png", (1, 1))
    assert evaluated(trained, tmp_path / "out", capsys, one=one) == set()


def test_the_images_of_a_table_are_read_files_and_a_folder_is_listed(table, tmp_path):
    source = open_source(FolderConfig(path=str(table)))
    names = {os.path.basename(path) for path in source.read_files()}
    assert names == {"t.csv", *(f"{number}.png" for number in range(6))}
    assert {row[0] for row in provenance.files_of(FolderConfig(path=str(table)), source)} == names
    (tmp_path / "0.txt").write_text("a dog")
    folder = FolderConfig(path=str(tmp_path))
    source = open_source(folder)
    assert source.read_files() == []
    assert {row[0] for row in provenance.files_of(folder, source)} == {*names, "0.txt"}


def test_results_that_results_json_no_longer_has_are_named(trained, table, tmp_path, capsys):
    source = FolderConfig(path=str(table))
    evaluated(trained, tmp_path / "out", capsys, first=RetrievalConfig(source=source))
    config = eval_config()
    config.eval.evaluators = {"second": RetrievalConfig(source=source)}
    config.eval.batch_size = 16
    eval_command.run(trained, config=from_eval_config(config), out=tmp_path / "out")
    where = tmp_path / "out" / "evaluators"
    assert f"results.json had those of first; they stay in {where}." in capsys.readouterr().out
    assert (where / "first.json").is_file()


def test_two_evaluators_whose_published_files_are_one_are_refused():
    def of(language="", **options):
        return ZeroShotConfig(language=language, **options) if language else ZeroShotConfig(**options)

    refuse_one_file({"a": of(published_as="wds/x"), "b": of(published_as="wds/y"), "c": of()})
    refuse_one_file({"en": of("en", published_as="wds/x"), "it": of("it", published_as="wds/x")})
    refuse_one_file({"a": of(published_as="wds/x"), "b": RetrievalConfig(published_as="wds/x")})
    for names in (("wds/x", "wds/x"), ("wds/x", "x"), ("a/b", "a_b")):
        one, other = (of(published_as=name) for name in names)
        with pytest.raises(ConfigError, match="'a' and 'b' would both be published as .*_zeroshot_classification.json"):
            refuse_one_file({"a": one, "b": other})


def test_a_dtype_that_is_not_used_is_told(trained, table, tmp_path, capsys):
    evaluated(trained, tmp_path / "out", capsys, pairs=RetrievalConfig(source=FolderConfig(path=str(table))))
    assert "is not used" not in capsys.readouterr().out
    config = run_of(trained.parent, model__dtype="bfloat16")
    eval_command.run(trained, config=config, out=tmp_path / "other")
    printed = capsys.readouterr().out
    assert f"Evaluating in float32, as {trained} was trained: config.model.dtype=bfloat16 is not used." in printed
