"""k-nearest-neighbour classification equals scikit-learn's, however the images and neighbours are cut."""

import numpy as np
import pytest

from clipjax.config import ConfigError
from clipjax.eval import KNNConfig, knn
from tests.eval.probe_splits import call, clusters, every_mesh, mesh_of, source

TRAIN, TEST = clusters(203, seed=1), clusters(150, seed=3)
SPLITS = dict(source=source("test"), train=source("train"))


@every_mesh
@pytest.mark.parametrize("temperature", [0.07, 0.0])
def test_knn_equals_scikit_learn(mesh, temperature):
    neighbors = pytest.importorskip("sklearn.neighbors")
    config = KNNConfig(**SPLITS, temperature=temperature)
    found = call(config, TEST, mesh=mesh_of(mesh), train=TRAIN)
    weights = (lambda distance: np.exp((1 - distance) / temperature)) if temperature else "uniform"
    for k in config.neighbours:
        judge = neighbors.KNeighborsClassifier(k, metric="cosine", weights=weights).fit(*TRAIN)
        assert found[f"top1_k{k}"] == pytest.approx(judge.score(*TEST), abs=1e-12)
        assert found[f"top1_k{k}_low"] < found[f"top1_k{k}"] < found[f"top1_k{k}_high"]
    assert found["top1"] == found["top1_k20"] and found["top1"] < found["top5"]
    assert set(config.metrics) | {"details"} == set(found)


@pytest.mark.parametrize("tile, chunk", [(1, 1), (50, 30), (64, 203), (1000, 1000)])
def test_neighbours_do_not_depend_on_the_tiles(tile, chunk):
    parts = [*zip(*knn.nearest(TEST[0], TRAIN[0], 9, TEST[1], mesh_of(), tile, chunk), strict=True)]
    similarity, index, labels = (np.concatenate(part) for part in parts)
    cosine = TEST[0].astype(np.float64) @ TRAIN[0].T.astype(np.float64)
    np.testing.assert_array_equal(index, np.argsort(-cosine, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(similarity, np.take_along_axis(cosine, index, 1), atol=1e-6)
    np.testing.assert_array_equal(labels, TEST[1])


def test_of_equal_neighbours_the_earlier_counts_and_of_equal_votes_the_lower_class():
    same = np.ones((6, 4), np.float32)
    [(_, index, _)] = knn.nearest(same[:1], same, 3, np.zeros(1, int), mesh_of(), chunk=2)
    assert index.tolist() == [[0, 1, 2]]
    votes = lambda own: knn.vote_ranks(np.ones((1, 4)), np.array([[2, 1, 1, 2]]), np.array([own]), 9, 0.07)[0]  # noqa: E731
    assert (votes(1), votes(2)) == (0, 1)
    assert votes(5) > 5, "a class without a vote is not among the first five"


def test_a_low_temperature_does_not_overflow():
    config = KNNConfig(**SPLITS, temperature=1e-6)
    assert call(config, TEST, train=TRAIN)["top1_k20"] == call(config, TEST, train=TRAIN)["top1_k1"]


def test_more_neighbours_than_training_records_are_refused_before_anything_is_embedded():
    config = KNNConfig(**SPLITS, neighbours=(1, 300))
    labels = lambda: (np.arange(203) % 7, True)  # noqa: E731
    with pytest.raises(ConfigError, match=r"neighbours=\(1, 300\): toy, split 'train', has only 203 labelled records"):
        knn.check(config, class_names=(), labels=labels, others={"train": ((), labels)})
    with pytest.raises(ConfigError, match="has only 203"):
        call(config, TEST, train=TRAIN)
