"""What a set that is not what it says does to an evaluation: it is refused, or counted, never passed over."""

import dataclasses

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, MeshConfig, SourceConfig
from clipjax.data.records import ManifestError
from clipjax.data.sources import WebDatasetConfig, open_source
from clipjax.eval import (
    FewShotConfig,
    KNNConfig,
    LinearProbeAdamWConfig,
    LinearProbeConfig,
    MultilabelConfig,
    RetrievalConfig,
    ZeroShotConfig,
    multilabel,
    retrieval,
    zero_shot,
)
from clipjax.inference.evaluate import open_evaluators
from clipjax.mesh import make_mesh
from tests.eval.probe_splits import batches_of, call, clusters, place
from tests.eval.wds_sets import NAMES, image, write_classification, write_split
from tests.tiny import tiny_config

PROBES = LinearProbeConfig, LinearProbeAdamWConfig, FewShotConfig
TRAIN = SourceConfig(path="toy", split="train")


def config_of(**evaluators):
    config = tiny_config()
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators=evaluators))


def wds(folder, split="test"):
    return WebDatasetConfig(path=str(folder), split=split)


@pytest.mark.parametrize("make", [ZeroShotConfig, FewShotConfig])
def test_labels_beyond_the_names_of_a_published_set_are_refused_when_it_is_opened(tmp_path, make):
    folder = write_classification(tmp_path, labels=(0, 1, 2, 1, 2))
    (folder / "classnames.txt").write_text("cat\ndog\n", encoding="utf-8")
    write_split(folder, "train", [{"png": image(90 + n), "cls": str(n % 2).encode()} for n in range(4)])
    splits = {"train": wds(folder, "train")} if make is FewShotConfig else {}
    with pytest.raises(ManifestError, match="evaluators.it: 2 of the 5 records .*; .*1.tar record 0: .*is 2"):
        open_evaluators(config_of(it=make(source=wds(folder), **splits)))


def test_a_training_split_of_one_class_is_refused_when_it_is_opened_by_every_probe(tmp_path):
    folder = write_classification(tmp_path)
    write_split(folder, "train", [{"png": image(90 + n), "cls": b"1"} for n in range(4)])
    for make, options in (*((make, {}) for make in PROBES), (KNNConfig, {"neighbours": (2,)})):
        with pytest.raises(ConfigError, match="evaluators.it: .*all labelled records have the label 1"):
            open_evaluators(config_of(it=make(source=wds(folder), train=wds(folder, "train"), **options)))


@pytest.mark.parametrize("rest", [pytest.param(0, id="empty file"), pytest.param(1024, id="between two files")])
def test_a_tar_of_a_published_set_without_its_end_is_refused(tmp_path, rest):
    folder = write_classification(tmp_path, shards=3)
    tar = folder / "test/1.tar"
    tar.write_bytes(tar.read_bytes()[:rest])
    with pytest.raises(ManifestError, match="1.tar is cut: it has no end mark"):
        open_source(wds(folder))


@pytest.mark.parametrize("make", [LinearProbeConfig, LinearProbeAdamWConfig])
def test_a_penalty_is_not_chosen_on_no_records(make):
    x = clusters(3)[0]
    options = {"validation_share": 0.2} if make is LinearProbeAdamWConfig else {}
    config = make(source=SourceConfig(path="toy", split="test"), train=TRAIN, **options)
    with pytest.raises(ConfigError, match="No class has enough of the 3 training records to hold out a share of 0.2"):
        call(config, (x[::-1], [0, 1, 2]), train=(x, [0, 1, 2]))


def test_bad_records_are_counted_by_every_evaluator():
    mesh, x = make_mesh(MeshConfig(8, 1, 1), jax.devices()[:8]), clusters(20, classes=3)[0]
    ids = {"text": np.arange(20, dtype=np.int32)[:, None], "pair_id": np.full(20, -1, np.int32)}
    shared = {
        "batches": batches_of(mesh, x, np.arange(20) % 3, unreadable=[4, 7, 19], columns=ids),
        "embed_images": lambda batch: batch["image"],
        "embed_texts": lambda tokens: x[tokens[:, 0]],
        "tokenizer": lambda texts: np.arange(len(texts), dtype=np.int32)[:, None],
        "class_names": NAMES,
        "record": lambda index: {"targets": np.eye(3, dtype=np.uint8)[index % 3]},
        "where": place,
        "mesh": mesh,
    }
    for module, config in (
        (zero_shot, ZeroShotConfig()),
        (multilabel, MultilabelConfig()),
        (retrieval, RetrievalConfig()),
    ):
        found = module.evaluate(config, **shared)
        assert (found["examples"], found["unreadable"]) == (17, 3)
        assert set(found) - {"details"} <= set(config.metrics)
