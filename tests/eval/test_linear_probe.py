"""The linear probes equal scikit-learn's logistic regression and torch's AdamW, on any mesh."""

import warnings

import numpy as np
import pytest

from clipjax.eval import LinearProbeAdamWConfig, LinearProbeConfig, linear_probe_adamw, scores
from clipjax.eval.logistic import LogisticRegression
from tests.eval.probe_splits import call, clusters, every_mesh, mesh_of, source

TRAIN, VALIDATION, TEST = clusters(103, seed=1), clusters(61, seed=2), clusters(150, seed=3)
SPLITS = dict(source=source("test"), train=source("train"))


def sklearn_fit(x, labels, c, max_iter=1000):
    linear_model = pytest.importorskip("sklearn.linear_model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged
        return linear_model.LogisticRegression(C=c, max_iter=max_iter).fit(x.astype(np.float64), labels)


@every_mesh
def test_logistic_regression_has_scikit_learns_coefficients_however_the_rows_are_spread(mesh):
    x, labels = TRAIN
    for max_scores in (2**26, 300):
        problem = LogisticRegression(x, labels, 7, mesh_of(mesh), max_scores)
        for c in (1e-3, 0.316):
            found, expected = problem.fit(c), sklearn_fit(x, labels, c)
            np.testing.assert_allclose(found.kernel.T, expected.coef_, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(found.bias, expected.intercept_, rtol=1e-6, atol=1e-9)
            assert (found.iterations, found.converged) == (expected.n_iter_[0], True)


def test_two_classes_are_penalised_as_in_scikit_learn_and_classes_without_examples_are_never_predicted():
    x, labels = TRAIN
    two = labels < 2
    found = LogisticRegression(x[two], labels[two] * 3 + 1, 6, mesh_of()).fit(1.0)
    expected = sklearn_fit(x[two], labels[two], 1.0)
    np.testing.assert_allclose(found.kernel[:, 4], expected.coef_[0], rtol=1e-6)
    np.testing.assert_allclose(found.bias[[1, 4]], [0, expected.intercept_[0]], rtol=1e-6)
    assert np.all(np.isneginf(found.bias[[0, 2, 3, 5]]))
    ranks = scores.linear_ranks(x[two], found.kernel, found.bias, labels[two] * 3 + 1, mesh_of())
    assert np.mean(ranks == 0) == expected.score(x[two].astype(np.float64), labels[two])
    missing = scores.linear_ranks(x[two], found.kernel, found.bias, labels[two] * 0, mesh_of())
    assert np.all(missing > 5), "a class that was not learned is wrong at any k"


def test_a_linear_probe_follows_the_protocol_of_clips_paper_with_its_own_validation_split():
    config = LinearProbeConfig(**SPLITS, validation=source("validation"), max_iterations=40)
    found = call(config, TEST, train=TRAIN, validation=VALIDATION)

    grid = np.logspace(-6, 6, 97)
    share = lambda i: sklearn_fit(*TRAIN, grid[i], 40).score(*VALIDATION)  # noqa: E731
    tried = {i: share(i) for i in range(0, 97, 16)}
    best = lambda: min(tried, key=lambda i: (-tried[i], i))  # noqa: E731
    for span in (8, 4, 2, 1):
        peak = best()
        tried |= {i: share(i) for i in (max(0, peak - span), min(96, peak + span))}
    both = [np.concatenate(parts) for parts in zip(TRAIN, VALIDATION, strict=True)]
    final = sklearn_fit(*both, grid[best()], 40)
    assert found["C"] == pytest.approx(grid[best()], rel=1e-12)
    assert found["validation_top1"] == pytest.approx(tried[best()], abs=1e-12)
    assert found["top1"] == pytest.approx(final.score(*TEST), abs=1e-12)
    assert found["top1_low"] < found["top1"] < found["top1_high"]
    predicted = final.predict(TEST[0])
    per_class = [np.mean(predicted[TEST[1] == c] == c) for c in range(7)]
    assert found["mean_per_class_recall"] == pytest.approx(np.mean(per_class))
    assert [row["top1"] for row in found["details"]["classes"]] == pytest.approx(per_class)
    assert len(found["details"]["tried"]) == len(tried) < 97
    assert (found["examples"], found["train_examples"], found["validation_examples"]) == (150, 103, 61)
    assert found["chance"] == 1 / 7 and 0.3 < found["top1"] < 1
    assert set(config.metrics) | {"details"} == set(found)


def test_without_a_validation_split_a_seeded_share_of_each_class_chooses_and_the_results_say_so():
    config = LinearProbeConfig(**SPLITS, validation_share=0.25, seed=3, max_iterations=15)
    found = call(config, TEST, mesh=mesh_of("1x1x1"), train=TRAIN)
    assert found["details"]["validation"].endswith("0.25 of each class, seed 3")
    assert found["validation_examples"] == pytest.approx(103 / 4, abs=4)
    final = sklearn_fit(*TRAIN, found["C"], 15)
    assert found["top1"] == pytest.approx(final.score(*TEST), abs=1e-12), "the last fit learns from all of train"
    assert set(config.metrics) | {"details"} == set(found)


def test_a_given_penalty_is_not_searched_and_features_before_the_projection_are_used_as_they_are():
    config = LinearProbeConfig(**SPLITS, C=0.316, features="before_projection")
    found = call(config, TEST, train=TRAIN)
    assert found == call(config, TEST, mesh=mesh_of("2x2x2"), train=TRAIN), "to the last digit on another mesh"
    final = sklearn_fit(TRAIN[0] * 3, TRAIN[1], 0.316)
    assert found["top1"] == pytest.approx(final.score(TEST[0] * 3, TEST[1]), abs=1e-12)
    assert found["details"]["features"] == "before_projection" and "validation_top1" not in found
    assert set(config.metrics) | {"details"} == set(found)


def test_the_search_tries_the_neighbours_of_the_best_and_prefers_the_stronger_penalty():
    peak, tried = scores.search_peak(97, 16, lambda i: -abs(i - 43))
    assert peak == 43 and tried == [0, 16, 32, 36, 40, 41, 42, 43, 44, 46, 48, 56, 64, 80, 96]
    assert scores.search_peak(97, 16, lambda i: 1.0)[0] == 0


@every_mesh
def test_adamw_gives_the_weights_of_torchs_for_the_same_first_weights_and_order(mesh):
    torch = pytest.importorskip("torch")
    x, labels = TRAIN
    kernel, bias = linear_probe_adamw.first_weights(16, 7, seed=0)
    order = linear_probe_adamw.batch_order(len(x), 64, 3, seed=0)
    found = linear_probe_adamw.train_layer(x, labels, order, kernel, bias, 0.1, 0.02, mesh_of(mesh))

    layer = torch.nn.Linear(16, 7)
    layer.weight.data, layer.bias.data = torch.from_numpy(kernel.T.copy()), torch.from_numpy(bias.copy())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.02)
    for step, rows in enumerate(order):
        rows = rows[rows >= 0]
        optimizer.param_groups[0]["lr"] = 0.5 * (1 + np.cos(np.pi * step / len(order))) * 0.1
        optimizer.zero_grad()
        scored = layer(torch.from_numpy(x[rows]))
        torch.nn.functional.cross_entropy(scored, torch.from_numpy(labels[rows]).long()).backward()
        optimizer.step()
    np.testing.assert_allclose(found[0], layer.weight.detach().numpy().T, atol=1e-5)
    np.testing.assert_allclose(found[1], layer.bias.detach().numpy(), atol=1e-5)


def test_every_epoch_sees_every_example_once_in_another_order():
    order = linear_probe_adamw.batch_order(10, 4, 2, seed=1)
    assert order.shape == (6, 4)
    epochs = [rows[rows >= 0] for rows in order.reshape(2, -1)]
    assert all(sorted(rows) == list(range(10)) for rows in epochs) and list(epochs[0]) != list(epochs[1])


def test_the_adamw_probe_reports_clip_benchmarks_keys_and_searches_the_weight_decay_on_a_validation_split():
    config = LinearProbeAdamWConfig(**SPLITS)
    plain = call(config, TEST, train=TRAIN)
    assert set(config.metrics) | {"details"} == set(plain) and plain["weight_decay"] == 0
    assert 0.3 < plain["lp_acc1"] < plain["lp_acc5"] <= 1
    assert {"epochs": 10, "seed": 0, "fewshot_k": -1, "normalized": True}.items() <= plain["details"].items()
    config = LinearProbeAdamWConfig(**SPLITS, validation=source("validation"), epochs=2)
    found = call(config, TEST, train=TRAIN, validation=VALIDATION)
    assert set(config.metrics) | {"details"} == set(found)
    assert found["weight_decay"] in linear_probe_adamw.WEIGHT_DECAYS
    assert found["validation_acc1"] == max(found["details"]["tried"].values())
