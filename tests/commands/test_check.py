"""`clipjax check` runs every check, lists all errors, and shows what the data holds."""

import collections
import dataclasses
import importlib

import numpy as np
import pytest

from clipjax.commands import check, check_data
from clipjax.config import AugmentConfig, DataConfig, MixturePart, SourceConfig, TokenizerConfig
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.probe import read_labels, some_of
from clipjax.data.records import RecordError, encode_record
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.write import write_records
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from clipjax.report.data import (
    SourceReport,
    count_tokens,
    describe_classes,
    describe_lengths,
    describe_samples,
    describe_unknown,
    quantile,
)
from data_pipelines import train_tokenizer
from tests.data.samples import encoded, picture
from tests.eval_runs import save_steps, start_of
from tests.runs import write_experiment
from tests.tiny import CONTEXT, tiny_config

TEXTS = ["a cat", "a dog on a very long red mat in the rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data`: 12 records of three classes, of which the last is rare; `data.model`: a tokenizer of 64 pieces."""
    path = tmp_path_factory.mktemp("check")
    rows = [
        encode_record(encoded(picture(i)), [TEXTS[i % 2]], key=f"key{i}", label=2 if i == 5 else i % 2)
        for i in range(12)
    ]
    write_records(path / "data", {"train": rows}, name="t", class_names=["cat", "dog", "bird"], source={})
    train_tokenizer.build(path / "data.model", records=path / "data", vocab_size=40, model_type="bpe")
    return path


def config_of(folder, **changes):
    config = dataclasses.replace(tiny_config(), tokenizer=TokenizerConfig(path=str(folder / "data.model")))
    source = SourceConfig(path=str(folder / "data"))
    evaluators = {"x": ZeroShotConfig(source=source), "y": RetrievalConfig(source=source)}
    evaluation = dataclasses.replace(config.eval, evaluators=evaluators, batch_size=16)
    data = DataConfig(train=source)
    return dataclasses.replace(config, data=data, eval=evaluation, **changes)


@pytest.mark.parametrize(
    ("texts", "counted", "hint"),
    [
        (["a cat"] * 3, "", ""),
        (["a cat"] * 19 + ["猫"], "1 of 20 captions (5.0%)", ""),
        (["a cat", "猫 cat"], "1 of 2 captions (50.0%)", ": use a tokenizer of these captions' language"),
    ],
)
def test_captions_that_the_tokenizer_cannot_read_are_counted(folder, texts, counted, hint):
    tokenizer, report = (
        make_tokenizer(TokenizerConfig(path=str(folder / "data.model")), CONTEXT),
        SourceReport(len(texts)),
    )
    report.captions = len(texts)
    count_tokens(report, list(texts), tokenizer)
    which = " have characters or words that config.tokenizer does not know, which all become one token"
    assert describe_unknown(report) == ([f"  {counted}{which}{hint}"] if counted else [])


def test_prompts_that_differ_and_batches_larger_than_the_data_are_told(folder, capsys, tmp_path):
    config = config_of(folder)
    train = dataclasses.replace(config.data.train, prompts=("one {}",))
    evaluators = {"x": dataclasses.replace(config.eval.evaluators["x"], templates=("two {}",))}
    changed = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train=train),
        eval=dataclasses.replace(config.eval, evaluators=evaluators),
    )
    check.run(changed, tmp_path / "new")
    shown = capsys.readouterr().out
    assert (
        "config.eval.evaluators.x.templates, such as 'two {}', are not the prompts that are trained on, such as"
        in shown
    )
    assert "A batch of 16 has 16 examples of config.data.train, which has 12 records" in shown
    evaluators = {"x": dataclasses.replace(evaluators["x"], templates=("one {}",))}
    same = dataclasses.replace(changed, eval=dataclasses.replace(config.eval, evaluators=evaluators))
    check.run(dataclasses.replace(same, loss=dataclasses.replace(same.loss, repeats="positives")), tmp_path / "new")
    shown = capsys.readouterr().out
    assert "are not the prompts" not in shown and "A batch of" not in shown


def test_a_good_experiment_is_shown_and_ok(folder, capsys, tmp_path):
    config = config_of(folder)
    reports = check.run(config, tmp_path / "new")
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("\nOK")
    assert "a run begins at step 0 of 20" in shown and not (tmp_path / "new").exists()
    assert "record 0: key 'key0', image 60 x 40, label 0 'cat'\n    caption: 'a cat'\n" in shown
    assert shown.count("  record ") == 5
    (report,) = reports.values()
    tokens = make_tokenizer(config.tokenizer, CONTEXT).lengths(TEXTS)
    assert report.lengths == {tokens[0]: 6, tokens[1]: 6} and tokens[1] > CONTEXT >= tokens[0]
    assert f"6 of 12 captions (50.0%) are cut at config.model.text.context_length={CONTEXT}" in shown
    assert f"{tokens[1]} tokens, cut at {CONTEXT}: " in shown
    assert "labels: 12 of 12 records have one, of 3 of 3 classes" in shown
    assert "records in a class: 6 'cat', 5 'dog', 1 'bird'" in shown
    assert "  x: 3 prompts, such as 'cat'\n    tokens of a prompt: median" in shown


def test_a_run_that_continues_unchanged_is_told_of_no_change(folder, capsys, tmp_path):
    """A run's checkpoints name the decoder that "auto" has become, as train chooses it."""
    config = config_of(folder)
    assert config.data.decoder == "auto"
    trained = dataclasses.replace(config, data=choose_decoder(config.data))
    save_steps(tmp_path, trained, start_of(trained), [3])
    check.run(config, tmp_path, decode=False, records=2)
    shown = capsys.readouterr().out
    assert "a run continues at step 3 of 20\n" in shown and " -> " not in shown


def test_all_errors_are_listed_each_once(folder, capsys):
    config = config_of(folder, global_batch_size=12, accumulation_steps=5, init_from=str(folder / "nowhere"))
    evaluators = {
        "x": ZeroShotConfig(source=config.data.train, templates=("a",)),
        "y": RetrievalConfig(source=SourceConfig(path=str(folder / "no"))),
    }
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators=evaluators))
    with pytest.raises(check.CheckError) as caught:
        check.run(config)
    message = str(caught.value)
    for expected in (
        "5 errors found:\n1. config.global_batch_size=12 does not divide",
        "2. config.accumulation_steps=5 does not divide",
        "3. config.eval.evaluators.x: Template 'a' has no {}",
        f"4. config.init_from={folder}/nowhere: ",
        "5. ",
    ):
        assert expected in message
    assert message.count("no/manifest.json does not exist") == 1
    assert "OK" not in capsys.readouterr().out.splitlines()


def test_missing_data_is_one_error_that_begins_with_its_field(folder):
    config = config_of(folder)
    nowhere = SourceConfig(path=str(folder / "no"))
    evaluators = {"x": ZeroShotConfig(source=nowhere)}
    for changed, field in (
        (dataclasses.replace(config, data=DataConfig(train=nowhere)), "data.train"),
        (dataclasses.replace(config, data=DataConfig(mixture={"a": MixturePart(nowhere)})), "data.mixture.a.source"),
        (
            dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators=evaluators)),
            "eval.evaluators.x",
        ),
    ):
        with pytest.raises(check.CheckError) as caught:
            check.run(changed)
        assert str(caught.value).startswith(f"1 error found:\n1. config.{field}: {folder}/no/manifest.json does not")


def test_without_a_tokenizer_the_rest_is_checked_and_says_what_is_not(folder, capsys):
    tokenizer = TokenizerConfig(path="none.model")
    config = dataclasses.replace(config_of(folder), tokenizer=tokenizer)
    with pytest.raises(check.CheckError, match=r"1 error found:\n1. config.tokenizer.path='none.model' is not a file"):
        check.run(config)
    shown = capsys.readouterr().out
    assert "training data: not checked, because of an error above" in shown
    assert "caption: 'a cat'" in shown and "tokens" not in shown


def test_labels_beyond_the_names_are_found_in_the_last_record(folder, tmp_path):
    rows = [encode_record(encoded(picture()), ["a"], key=str(i), label=2 * (i == 29)) for i in range(30)]
    write_records(tmp_path / "data", {"train": rows}, name="t", source={})
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    evaluator = ZeroShotConfig(
        source=SourceConfig(path=str(tmp_path / "data")), class_names=str(tmp_path / "names.txt")
    )
    config = config_of(folder)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators={"x": evaluator}))
    with pytest.raises(check.CheckError, match="evaluators.x: .*has the label 2, but there are 2 class names"):
        check.run(config)


def test_bad_records_above_the_share_are_an_error_and_below_are_told(folder, tmp_path, capsys):
    rows = [encode_record(encoded(picture()) if i else b"", ["a cat"], key=str(i)) for i in range(20)]
    write_records(tmp_path / "data", {"train": rows}, name="t", source={})
    data = DataConfig(train=SourceConfig(path=str(tmp_path / "data")))
    config = dataclasses.replace(config_of(folder), data=data)
    with pytest.raises(check.CheckError, match=r"train: 5.0% of the records are bad \(\{'empty image': 1\}\)"):
        check.run(config)
    check.run(dataclasses.replace(config, data=dataclasses.replace(data, max_bad_share=0.1)))
    assert "record 0: bad (empty image)" in capsys.readouterr().out


def test_the_command_exits_with_1_and_names_a_wrong_field(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "wrong.py").write_text(
        "from clipjax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    with config.unlocked():\n        config.mesh.dta = 1\n        config.mesh.fspd = 2\n    return config\n"
    )
    with pytest.raises(SystemExit) as end:
        check.main(["check", f"--config={tmp_path}/wrong.py"])
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert "1. Unknown field config.mesh.dta. Did you mean 'data'?" in shown
    write_experiment(tmp_path)
    with pytest.raises(SystemExit) as end:
        check.main(["check", f"--config={tmp_path}/experiment.py"])
    assert end.value.code == 1
    assert "errors found" in capsys.readouterr().err


def test_check_data_shows_the_same_samples(folder, capsys):
    check_data.run(config_of(folder))
    shown = capsys.readouterr().out
    assert "record 0: key 'key0', image 60 x 40, label 0 'cat'\n    caption: 'a cat'\n" in shown
    assert "tokens of a caption: median" in shown and "6 'cat', 5 'dog', 1 'bird'" in shown
    check_data.run(dataclasses.replace(config_of(folder), tokenizer=TokenizerConfig(path="none.model")))
    assert "Captions are not shown as tokens: config.tokenizer.path='none.model'" in capsys.readouterr().out


def test_an_evaluator_called_train_does_not_hide_the_training_data(folder):
    config = config_of(folder)
    evaluators = {"train": RetrievalConfig(source=SourceConfig(path="other"))}
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators=evaluators))
    assert [use.name for use in check_data.uses_of_data(config)] == ["train", "evaluator train"]


def test_many_classes_show_the_most_and_least_frequent_and_the_empty_ones():
    labels = collections.Counter({-1: 4} | {i: 10 - i for i in range(8)})
    lines = describe_classes(labels, [f"n{i}" for i in range(10)])
    assert lines == [
        "  labels: 52 of 56 records have one, of 8 of 10 classes",
        "    records in a class: most 10 'n0', 9 'n1', 8 'n2'; fewest 5 'n5', 4 'n6', 3 'n7'",
        "    2 classes have no record: 'n8', 'n9'",
    ]
    assert describe_classes(collections.Counter({-1: 3}), ()) == []
    assert "(there is no such class name)" in describe_classes(collections.Counter({3: 1}), ["a"])[1]


def test_quantiles_are_values_that_occur():
    lengths = collections.Counter([1] * 10 + [2] * 9 + [50])
    assert (quantile(lengths, 0.5), quantile(lengths, 0.95), quantile(lengths, 1.0)) == (1, 2, 50)
    assert describe_lengths("caption", lengths, 2)[0].startswith(
        "  tokens of a caption: median 1, 95 % up to 2, max 50; 1 of 20"
    )
    assert describe_lengths("caption", collections.Counter(), 2) == []


class Numbered:
    class_names = ()

    def __init__(self, size, bad=()):
        self.size, self.bad = size, bad

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise RecordError("bad", "bad")
        return {"label": index, "image": encoded(picture()), "texts": ["a\nb" * 200], "key": "k"}


def test_some_records_are_the_same_every_time_and_all_where_there_are_few():
    labels, whole = read_labels(Numbered(10, bad={3}), 10)
    assert whole and labels.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    some, whole = read_labels(Numbered(1000), 50)
    assert not whole and len(set(some.tolist())) == 50
    np.testing.assert_array_equal(some, some_of(Numbered(1000), 50))


def test_samples_are_short_lines_and_name_bad_records():
    lines = describe_samples(Numbered(9, bad={4}), None).split("\n")
    assert sum(line.startswith("  record ") for line in lines) == 5 and "  record 4: bad (bad): bad" in lines
    assert all(len(line) < 330 for line in lines)


def test_every_part_s_error_is_listed_and_no_other_exception_is_hidden_by_it(folder, monkeypatch, capsys):
    config = config_of(folder, accumulation_steps=5)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=AugmentConfig(scale=(1.0, 0.5))))
    with pytest.raises(check.CheckError, match=r"(?s)^2 errors found.*1\. config\.accumulation_steps=5.*2\. .*scale="):
        check.run(config)
    assert "configuration: wrong\n  config.accumulation_steps=5" in capsys.readouterr().out
    monkeypatch.setattr(importlib.import_module("clipjax.training.check"), "check_augment", lambda augment: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check.run(config)
