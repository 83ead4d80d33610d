"""Labelled images are trained on as prompts with their class's name; images of one class are each other's positives."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest

from clipjax.config import ConfigError, DataConfig, MixturePart, SourceConfig
from clipjax.data.finding import find_data
from clipjax.data.mixture import open_train
from clipjax.data.records import ManifestError, encode_record
from clipjax.data.sources import FolderConfig, open_source
from clipjax.data.write import write_records
from clipjax.inference.looking import has_captions
from tests.data.samples import encoded, open_folder, picture, write_folder
from tests.data.test_pipeline import BATCH, DATA, assert_equal, joined, stream, take

TEMPLATES = ("a photo of a {}.", "{c}!")


def images(folder, *paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encoded(picture(number)))
    return folder


def test_a_record_has_every_prompt_of_its_class_and_the_class_as_pair_id(tmp_path):
    source = open_source(SourceConfig(path=str(write_folder(tmp_path / "set", 4)), prompts=TEMPLATES))
    found = [(record["texts"], record["label"], record["pair_id"]) for record in map(source.__getitem__, range(4))]
    even, odd = ["a photo of a even.", "even!"], ["a photo of a odd.", "odd!"]
    assert found == [(even, 0, 0), (odd, 1, 1), (even, 0, 0), (odd, 1, 1)]
    assert len(source) == 4 and source.captions(1) == odd
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == source[3] and copy.sha256() == source.sha256() and copy.class_names == ("even", "odd")
    assert not hasattr(source, "templates")  # what the source lacks, it lacks as well


def test_a_record_without_a_label_keeps_its_captions(tmp_path):
    records = [
        encode_record(encoded(picture()), text, key=text, label=label, pair_id=0)
        for text, label in (("a", None), ("b", 0))
    ]
    write_records(tmp_path / "set", {"train": records}, name="x", class_names=["x"], source={})
    source = open_source(SourceConfig(path=str(tmp_path / "set"), prompts=("the {}",)))
    assert [(record["texts"], record["pair_id"]) for record in map(source.__getitem__, (0, 1))] == [
        (["a"], -1), (["the x"], 0),
    ]  # fmt: skip


def test_prompts_without_names_or_without_a_place_for_them_are_refused(tmp_path):
    write_records(
        tmp_path / "set", {"train": [encode_record(encoded(picture()), "x", key="a", label=0)]}, name="x", source={}
    )
    with pytest.raises(ManifestError, match="has no class names to fill into prompts. Write a file classnames.txt"):
        open_source(SourceConfig(path=str(tmp_path / "set"), prompts=("{}",)))
    with pytest.raises(ConfigError, match="has no {} or {c} for the class name"):
        open_source(SourceConfig(path=str(write_folder(tmp_path / "other", 2)), prompts=("a photo",)))


def test_parts_of_a_mixture_keep_their_classes_apart(tmp_path):
    paths = {name: str(write_folder(tmp_path / name, 2)) for name in ("a", "b")}
    parts = {name: MixturePart(SourceConfig(path=path, prompts=TEMPLATES)) for name, path in paths.items()}
    source = open_train(DataConfig(mixture=parts))
    assert [source[i]["pair_id"] for i in range(4)] == [0, 2, 1, 3] and source[3]["texts"][1] == "odd!"


def test_class_folders_are_prompted(tmp_path):
    root = images(tmp_path / "set", "train/dog/a.png", "train/cat/b.png", "test/cat/c.png")
    train, test = find_data(root).split(2)
    assert not has_captions(open_source(train)) and test.split == "test"
    source = open_source(dataclasses.replace(train, prompts=("a {}",)))
    assert [(record["texts"], record["pair_id"]) for record in map(source.__getitem__, (0, 1))] == [
        (["a cat"], 0), (["a dog"], 1),
    ]  # fmt: skip


def test_records_held_out_of_data_without_a_split_are_prompted(tmp_path):
    root = images(tmp_path / "set", "dog/a.png", "cat/b.png", "cat/c.png")
    train, held_out = find_data(root).split(3)
    prompted = [open_source(dataclasses.replace(side, prompts=("a {}",))) for side in (train, held_out)]
    assert [[source[i]["texts"] for i in range(len(source))] for source in prompted] == [
        [["a cat"], ["a dog"]], [["a cat"]],
    ]  # fmt: skip


def test_a_table_of_labels_needs_no_captions(tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "rows.csv").write_text("image,label\na.png,cat\nb.png,dog\n")
    path = str(tmp_path / "rows.csv")
    assert open_source(FolderConfig(path=path, text_key=""))[1]["texts"] == ["dog"]
    assert open_source(FolderConfig(path=path, prompts=("a {}",)))[0]["texts"] == ["a cat"]


def test_each_example_draws_a_template_and_a_batch_is_a_function_of_the_seed_and_its_number(tmp_path):
    path = str(write_folder(tmp_path / "set"))
    # LengthTokenizer gives the numbers in a text.
    source = open_source(SourceConfig(path=path, prompts=("template 1 of {} 10", "template 2 of {} 20")))
    iterator = stream(source)
    first = take(iterator, 3)
    assert {tuple(row) for row in first[0]["text"].tolist()} == {(1, 10), (2, 20)}
    assert set(first[0]["pair_id"].tolist()) == {0, 1}
    state, expected = iterator.get_state(), take(iterator, 2)
    resumed = stream(source)
    resumed.set_state(state)
    assert_equal(take(resumed, 2), expected)


def test_an_image_comes_with_different_captions_and_repeats_them_only_when_it_has_too_few(tmp_path):
    source = open_folder(write_folder(tmp_path / "set"))  # record i has 1 + i % 3 captions, "caption C of record I"
    data = dataclasses.replace(DATA, captions_per_image=4)
    batch, again = (take(stream(source, data=data), 2)[1] for _ in range(2))
    assert_equal([batch], [again])
    assert batch["text"].shape == (BATCH, 4, 2)
    for captions, record in zip(batch["text"].tolist(), batch["pair_id"].tolist(), strict=True):
        assert {number for _, number in captions} == {record}
        counts = sorted(collections.Counter(number for number, _ in captions).values())
        assert counts == {1: [4], 2: [2, 2], 3: [1, 1, 2]}[1 + record % 3]
    one, two = (take(stream(source, data=dataclasses.replace(data, captions_per_image=k)), 1)[0] for k in (1, 2))
    assert one["text"].shape == (BATCH, 2) and two["text"].shape == (BATCH, 2, 2)
    np.testing.assert_array_equal(one["image"], two["image"])
    parts = [take(stream(source, data=data, process=(number, 2)), 1)[0] for number in range(2)]
    assert_equal([joined(parts)], take(stream(source, data=data), 1))
