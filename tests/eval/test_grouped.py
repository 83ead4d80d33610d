"""The worst group's accuracy and macro F1 equal scikit-learn's and a plain count."""

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, MeshConfig, SourceConfig
from clipjax.eval import GroupedConfig, grouped
from clipjax.eval.embeddings import EmbeddingError
from clipjax.mesh import batch_sharding, make_mesh

CLASSES, EXAMPLES, DIM = 6, 40, 6


def test_f1_recall_and_accuracy_equal_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    target = rng.integers(0, CLASSES - 1, EXAMPLES)  # the last class never occurs
    ranked = np.stack([rng.permutation(CLASSES) for _ in range(EXAMPLES)])
    found, said = grouped.scores(ranked, target, CLASSES), ranked[:, 0]
    f1 = metrics.f1_score(target, said, average="macro", labels=np.unique(target))
    assert found["f1_macro"] == pytest.approx(f1, abs=1e-12)
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        assert found["mean_per_class_recall"] == pytest.approx(metrics.balanced_accuracy_score(target, said), abs=1e-12)
    assert found["top1"] == metrics.accuracy_score(target, said)


@pytest.fixture(scope="module")
def case():
    """Images that are their scores, five of equal scores among them, and one without a label."""
    mesh = make_mesh(MeshConfig())
    rng = np.random.default_rng(1)
    image = rng.normal(size=(EXAMPLES, DIM)).astype(np.float32)
    label = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    image[np.arange(EXAMPLES), label] += 1
    image[:5] = 0.5
    image[5, 2] = np.nan
    label[7] = -1
    region = rng.integers(0, 3, EXAMPLES)

    def evaluate(config, rows=region):
        batch = {"image": image, "label": label, "index": np.arange(EXAMPLES, dtype=np.int32)}
        batch = jax.device_put({**batch, "valid": np.ones(EXAMPLES, bool)}, batch_sharding(mesh))
        return grouped.evaluate(
            config,
            batches=lambda: iter([batch]),
            embed_images=lambda batch: batch["image"],
            embed_texts=lambda tokens: np.eye(CLASSES, dtype=np.float32)[tokens[:, 0]],
            tokenizer=lambda texts: np.array([[int(text.split()[-1])] for text in texts], np.int32),
            class_names=[str(line) for line in range(CLASSES)],
            record=lambda index: {"key": str(index), "metadata": np.array([7, rows[index]])},
            templates=("a picture of {}",),
            mesh=mesh,
        )

    return evaluate, image, label, region


def config(**options):
    return GroupedConfig(source=SourceConfig(path="toy"), templates=(), **options)


def test_the_worst_group_equals_a_plain_count_and_a_tie_is_won_by_the_first_class(case):
    evaluate, image, label, region = case
    counted = label >= 0
    order = np.argsort(-np.nan_to_num(image), axis=1, kind="stable")
    for top in (1, 5):
        hit = (order[:, :top] == label[:, None]).any(1)
        hit[5] = False  # a score that is NaN is a wrong answer
        shares = [hit[counted & (region == own)].mean() for own in range(3)]
        found = evaluate(config(group=1, top=top, not_finite="against"))
        assert found["worst_group"] == pytest.approx(min(shares))
        assert found["worst_group_low"] < found["worst_group"] < found["worst_group_high"]
        assert [found["details"]["groups"][str(own)]["accuracy"] for own in range(3)] == pytest.approx(shares)
    assert (found["examples"], found["groups"], found["classes"]) == (EXAMPLES - 1, 3, CLASSES)
    names = config(group=1, worst_as="acc_worst_region").published_metrics(found)
    assert names["acc_worst_region"] == found["worst_group"] and names["F1-macro_all"] == found["f1_macro"]


def test_missing_metadata_is_told(case):
    evaluate, *_ = case
    assert "worst_group" not in evaluate(config(not_finite="against"))
    with pytest.raises(ConfigError, match="record '0' has 2 numbers of metadata, and group=2 needs 3"):
        evaluate(config(group=2, not_finite="against"))


def test_an_embedding_that_is_not_finite_is_refused_by_its_record(case):
    evaluate, *_ = case
    with pytest.raises(EmbeddingError, match="the image of toy, record 5 is not finite"):
        evaluate(config())
