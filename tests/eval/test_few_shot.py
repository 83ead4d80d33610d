"""Few-shot classification equals big_vision's formula, and its draw of the examples."""

import numpy as np
import pytest

from clipjax.config import ConfigError
from clipjax.eval import FewShotConfig, few_shot
from tests.eval.probe_splits import call, clusters, source

TRAIN, TEST = clusters(203, seed=1), clusters(150, seed=3)
SPLITS = dict(source=source("test"), train=source("train"))


def published(x, labels, x_test, y_test, classes, l2):
    """Accuracy of the ridge regression on whitened features, by an eigendecomposition in float64."""
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, x_test = (np.pad((part - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for part in (x, x_test))
    values, vectors = np.linalg.eigh(x.T @ x)
    weights = vectors @ np.diag(1 / (values + l2)) @ vectors.T @ x.T @ (2.0 * np.eye(classes)[labels] - 1)
    return np.mean(np.argmax(x_test @ weights, 1) == y_test)


def test_few_shot_equals_the_published_formula_for_more_and_for_fewer_examples_than_features():
    config = FewShotConfig(**SPLITS, dtype="float64")
    found = call(config, TEST, train=TRAIN)
    for shots in (1, 5, 10, 25):
        accuracies = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            drawn = np.concatenate([rng.permutation(np.where(TRAIN[1] == c)[0])[:shots] for c in range(7)])
            accuracies.append(published(TRAIN[0][drawn], TRAIN[1][drawn], *TEST, 7, 2.0**10))
        name = f"top1_{shots}shot"
        assert found["details"]["draws"][name] == pytest.approx(accuracies, abs=1e-12)
        assert found[name] == pytest.approx(np.mean(accuracies), abs=1e-12)
        assert found[f"{name}_std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-12)
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["top1_1shot"] < found["top1_25shot"]
    assert set(config.metrics) | {"details"} == set(found)


def test_a_class_with_fewer_examples_than_shots_gives_all_it_has_and_is_counted(caplog):
    x, labels = TRAIN
    kept = (labels != 3) | (np.cumsum(labels == 3) <= 4)  # four of class 3
    found = call(FewShotConfig(**SPLITS, shots=(4, 5)), TEST, train=(x[kept], labels[kept]))
    assert (found["short_classes_4shot"], found["short_classes_5shot"]) == (0, 1)
    assert "1 of 7 classes have fewer than 5 training examples" in caplog.text
    drawn = few_shot.draw(labels[kept], 7, 5, 0)
    assert np.bincount(labels[kept][drawn]).tolist() == [5, 5, 5, 4, 5, 5, 5]


def test_dimensions_that_do_not_vary_do_no_harm_and_float32_gives_nearly_the_same():
    found = call(FewShotConfig(**SPLITS, shots=(10,), dtype="float64"), TEST, train=TRAIN)
    flat = [(np.pad(x, ((0, 0), (0, 3)), constant_values=0.5), labels) for x, labels in (TRAIN, TEST)]
    again = call(FewShotConfig(**SPLITS, shots=(10,)), flat[1], train=flat[0])
    assert again["top1_10shot"] == pytest.approx(found["top1_10shot"], abs=0.01)


def test_shots_that_are_repeated_are_refused():
    with pytest.raises(ConfigError, match=r"shots=\(5, 5\) must be one or more different numbers"):
        few_shot.check(FewShotConfig(**SPLITS, shots=(5, 5)))
