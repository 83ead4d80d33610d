"""CLIP_benchmark's own writer and reader agree with our source on every label, caption, row, name and template."""

import types

import numpy as np
import pytest
from PIL import Image

from clipjax.data.sources import WebDatasetConfig, open_source
from tests.eval import wds_sets
from tests.torch_reference import import_torch


@pytest.fixture(scope="module")
def builder():
    import_torch("torchvision")
    pytest.importorskip("webdataset")
    return import_torch("clip_benchmark.datasets.builder")


@pytest.fixture(scope="module")
def writer(builder):
    return import_torch("clip_benchmark.webdataset_builder")


def theirs(builder, folder, split="test"):
    """(their data set, its samples as (colour, label))."""
    read = builder.build_wds_dataset("x", lambda image: image.convert("RGB").getpixel((0, 0)), split, str(folder))
    return read, list(read)


def ours(folder, split="test"):
    source = open_source(WebDatasetConfig(path=str(folder), split=split))
    return source, [source[i] for i in range(len(source))]


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_a_classification_set_is_the_same_to_both(builder, tmp_path, extension):
    names = ["near", "", "3", "0", *(f"class {i}" for i in range(8))]
    folder = wds_sets.write_classification(tmp_path, names=names, labels=range(12), shards=12, extension=extension)
    read, samples = theirs(builder, folder)
    source, records = ours(folder)
    assert list(source.class_names) == read.classes and list(source.templates) == read.templates
    assert [record["label"] for record in records] == [label for _, label in samples] == list(range(12))
    assert [colour for colour, _ in samples] == [wds_sets.colour(i) for i in range(12)]
    assert [record["image"] for record in records] == [wds_sets.image(i, extension) for i in range(12)]


def test_a_multilabel_set_is_the_same_to_both(builder, tmp_path):
    folder = wds_sets.write_multilabel(tmp_path)
    read, samples = theirs(builder, folder)
    source, records = ours(folder)
    assert list(source.class_names) == read.classes
    np.testing.assert_array_equal([record["targets"] for record in records], [np.asarray(row) for _, row in samples])


def test_a_retrieval_set_is_the_same_to_both_apart_from_newlines_inside_captions(builder, tmp_path):
    folder = wds_sets.write_retrieval(tmp_path, extension="webp")
    _, samples = theirs(builder, folder)
    assert [record["texts"] for record in ours(folder)[1]] == [
        [caption.replace("\\n", "\n") for caption in captions] for _, captions in samples
    ]


class Data(list):
    """(image, label) pairs with the lists that CLIP_benchmark's writer looks for."""

    classes, templates = list(wds_sets.NAMES), list(wds_sets.TEMPLATES)


LABELS = {
    "classification": (2, 0, 1, 1),
    "multilabel": tuple(np.array(row) for row in ((0, 1, 1), (1, 0, 0), (0, 0, 0), (1, 1, 1))),
    "retrieval": (["a cat"], ["two\nlines", "a dog"], ["b", "b"], ["Größe"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_what_their_writer_writes_is_read_as_it_was_given(writer, tmp_path, monkeypatch, kind):
    loader = types.SimpleNamespace(DataLoader=lambda dataset, **_: dataset)  # without its eight processes
    monkeypatch.setattr(writer.torch.utils, "data", loader)
    data = Data((Image.new("RGB", (8, 8), wds_sets.colour(i)), label) for i, label in enumerate(LABELS[kind]))
    options = dict(transform=writer.PIL_to_bytes("webp"), max_count=3, verbose=False)
    if kind == "retrieval":
        writer.convert_retrieval_dataset(data, "test", str(tmp_path), **options)
    else:
        writer.convert_dataset(data, "test", str(tmp_path), multilabel=kind == "multilabel", **options)
    assert (tmp_path / "test/nshards.txt").read_text() == "2\n"
    source, records = ours(tmp_path)
    assert source.task == kind
    field = {"classification": "label", "multilabel": "targets", "retrieval": "texts"}[kind]
    for record, label in zip(records, LABELS[kind], strict=True):
        assert np.array_equal(record[field], label)
    if kind != "retrieval":
        assert list(source.class_names) == Data.classes and list(source.templates) == Data.templates
