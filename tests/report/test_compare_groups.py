"""Which runs are seeds of one setting: those on the same data with one tokenizer, however their paths are spelt."""

from dataclasses import replace
from pathlib import Path

import pytest

from clipjax.config import MixturePart
from tests.report.test_compare import compared, write_run
from tests.tiny import tiny_config


def trained_on(path, tokenizer="tokenizer/1a2b3c4d/a.model", **parts):
    """Fields of a run on a folder, or on a mixture of several. tokenizer: as config.json names a run's copy."""
    config = tiny_config()
    source = lambda own: replace(config.data.train, path=own)  # noqa: E731
    mixture = {name: MixturePart(source=source(own)) for name, own in parts.items()}
    return {
        "data": replace(config.data, train=source(path), mixture=mixture),
        "tokenizer": replace(config.tokenizer, path=tokenizer),
    }


@pytest.mark.parametrize(
    ("others", "field"),
    [
        (trained_on("data/b"), "data.train.path"),
        (trained_on("gs://data/a"), "data.train.path"),
        (trained_on("data/a", tokenizer="tokenizer/5e6f7a8b/a.model"), "tokenizer.path"),
        (trained_on("data/a", tokenizer="tokenizer/1a2b3c4d/b.model"), "tokenizer.path"),
    ],
)
def test_runs_on_other_data_or_with_another_tokenizer_are_another_setting(tmp_path, others, field):
    runs = [write_run(tmp_path / f"a{seed}", 0.5, seed=seed, **trained_on("data/a")) for seed in (0, 1)]
    runs += [write_run(tmp_path / f"b{seed}", 0.7, seed=seed, **others) for seed in (0, 1)]
    found, groups = compared(*runs)
    assert found.fields == (field,) and len(groups) == 2
    assert [group.values for group in found.groups] == [{0: 0.5, 1: 0.5}, {0: 0.7, 1: 0.7}]


def test_mixtures_of_other_parts_are_other_settings(tmp_path):
    mixtures = [{"x": "data/a", "y": "data/b"}, {"x": "data/a", "y": "data/c"}, {"x": "data/a"}]
    runs = [write_run(tmp_path / str(i), seed=i, **trained_on("", **mixture)) for i, mixture in enumerate(mixtures)]
    assert [group.values for group in compared(*runs)[0].groups] == [{0: 0.5}, {1: 0.5}, {2: 0.5}]


def test_another_spelling_of_a_path_is_no_other_setting_and_is_not_noted(tmp_path, capsys):
    paths = ("data/a", "./data//a/", str(Path("data/a").absolute()))
    runs = [write_run(tmp_path / str(seed), seed=seed, **trained_on(path)) for seed, path in enumerate(paths)]
    assert compared(*runs)[1]["all runs"].values == {0: 0.5, 1: 0.5, 2: 0.5}
    assert "data differ" not in capsys.readouterr().out
