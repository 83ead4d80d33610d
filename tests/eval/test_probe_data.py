"""What probes refuse, match and count in their splits."""

import numpy as np
import pytest

from clipjax.config import ConfigError
from clipjax.eval import KNNConfig, LinearProbeConfig, few_shot, knn
from clipjax.eval.features import check_probe
from clipjax.eval.few_shot import FewShotConfig
from tests.eval.probe_splits import batches_of, call, clusters, mesh_of, source

TRAIN, TEST = clusters(60, classes=3, seed=1), clusters(40, classes=3, seed=3)
CONFIG = KNNConfig(source=source("test"), train=source("train"), neighbours=(5,))
NAMES = ("cat", "dog", "emu")


def labelled(*labels, whole=True):
    return lambda: (np.array(labels), whole)


def test_the_same_split_to_learn_and_to_score_is_refused_by_its_name_and_by_its_images():
    for config in (CONFIG, LinearProbeConfig(validation=source("train"), train=source("train"), source=source("test"))):
        config = config if config is not CONFIG else KNNConfig(source=source("a"), train=source("a"))
        with pytest.raises(ConfigError, match="are the same split, toy, split"):
            check_probe(config)
    with pytest.raises(ConfigError, match="hold the same images"):
        call(CONFIG, TRAIN, train=TRAIN)


def test_class_names_in_another_order_are_matched_by_name(caplog):
    x, labels = TEST
    plain = call(CONFIG, TEST, names=NAMES, train=(*TRAIN, NAMES))
    turned = call(CONFIG, (x, (labels + 1) % 3), names=("emu", "cat", "dog"), train=(*TRAIN, NAMES))
    assert turned["top1"] == plain["top1"] > 0.5
    assert "matched by name" in caplog.text
    # The names of the training split may be a part of those to score.
    more = call(CONFIG, TEST, names=(*NAMES, "fox"), train=(*TRAIN, NAMES))
    assert (more["top1"], more["classes"], more["untrained_classes"]) == (plain["top1"], 4, 1)
    assert more["chance"] == plain["chance"] == 1 / 3
    assert plain["details"]["classes"][1]["class"] == "dog"


def test_class_names_that_differ_are_refused_before_anything_is_embedded():
    message = r"line 2 \(from 0\) is 'fox' in the first and 'emu' in the second"
    with pytest.raises(ConfigError, match=message):
        check_probe(
            CONFIG,
            class_names=("cat", "dog", "fox"),
            labels=labelled(0, 1),
            others={"train": (NAMES, labelled(0, 1))},
        )
    with pytest.raises(ConfigError, match=message):
        call(CONFIG, TEST, names=("cat", "dog", "fox"), train=(*TRAIN, NAMES))


@pytest.mark.parametrize("check", [check_probe, knn.check, few_shot.check])
def test_labels_are_looked_at_before_anything_is_embedded(check):
    def refused(test, train, match):
        config = FewShotConfig(source=source("test"), train=source("train")) if check is few_shot.check else CONFIG
        with pytest.raises(ConfigError, match=match):
            check(config, class_names=NAMES, labels=test, others={"train": (NAMES, train)})

    good = labelled(0, 1, 2, 0, 1, 2)
    refused(labelled(0, 3), good, r"toy, split 'test': a record has the label 3, but there are 3 class names")
    refused(good, labelled(0, 7), r"toy, split 'train': a record has the label 7")
    refused(good, labelled(-1, -1), r"toy, split 'train': no record has a label")
    refused(good, labelled(2, 2, -1), r"all labelled records have the label 2; a probe needs at least two classes")
    check(CONFIG if check is not few_shot.check else FewShotConfig(source=source("a"), train=source("b")),
          class_names=NAMES, labels=good, others={"train": (NAMES, labelled(2, 2, whole=False))})  # fmt: skip


def test_splits_that_cannot_be_used_are_refused_by_what_is_wrong():
    x, labels = TEST
    with pytest.raises(ConfigError, match="split 'test': no record has a label"):
        call(CONFIG, (x, labels * 0 - 1), train=TRAIN)
    with pytest.raises(ConfigError, match="split 'train': the split is empty, or none of its 0 records could be read"):
        call(CONFIG, TEST, train=(x[:0], labels[:0]))
    with pytest.raises(ConfigError, match="split 'test': the split is empty, or none of its 40 records"):
        call(CONFIG, TEST, train=TRAIN, test_options={"unreadable": range(40)})
    with pytest.raises(ConfigError, match="all labelled records have the label 0"):
        call(CONFIG, TEST, train=(TRAIN[0], TRAIN[1] * 0))
    with pytest.raises(ConfigError, match="a record has the label 2, but there are 2 class names"):
        call(CONFIG, TEST, names=NAMES[:2], train=(*TRAIN, NAMES))


def test_features_that_are_not_finite_are_refused_with_the_first_record():
    x, labels = TEST[0].copy(), TEST[1]
    x[[23, 31]] = np.nan
    message = "split 'test': the features of 2 of 40 records are not finite; the first is toy.array_record record 23"
    with pytest.raises(ConfigError, match=message):
        call(CONFIG, (x, labels), train=TRAIN)


def test_bad_and_unlabelled_records_are_left_out_and_counted_and_batches_change_nothing():
    x, labels = TEST
    unlabelled = np.where(np.arange(40) % 10 == 3, -1, labels)
    found = call(CONFIG, (x, unlabelled), train=TRAIN, test_options={"unreadable": [5, 39]})
    assert (found["examples"], found["unlabelled"], found["unreadable"]) == (34, 4, 2)
    again = call(CONFIG, (x, unlabelled), train=TRAIN, test_options={"unreadable": [5, 39], "batch": 8})
    assert again == found
    assert len([*batches_of(mesh_of(), x, labels, batch=8)()]) == 5


def test_a_class_that_was_never_learned_is_told_and_counts_as_wrong(caplog):
    x, labels = TRAIN
    found = call(CONFIG, TEST, train=(x[labels > 0], labels[labels > 0]))
    assert "1 classes of the records to classify have no training record" in caplog.text
    assert found["details"]["classes"][0] == {
        "class": "0", "top1": 0.0, "examples": int(np.sum(TEST[1] == 0)), "train_examples": 0,
    }  # fmt: skip
    assert found["chance"] == 0.5
