"""95% intervals against textbooks, closed forms and repeated draws."""

import math

import numpy as np
import pytest

from clipjax.eval.intervals import (
    bootstrap_interval,
    mean_interval,
    median_interval,
    recall_interval,
    wilson_interval,
)


def test_wilson_interval_equals_the_textbook():
    # Agresti & Coull (1998): 15 of 20 gives (0.531, 0.888).
    assert wilson_interval(15, 20) == pytest.approx((0.531, 0.888), abs=5e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_bootstrap_and_normal_intervals_of_a_mean_agree():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    assert bootstrap_interval(values) == pytest.approx(mean_interval(values), abs=0.03)
    assert mean_interval(values) == pytest.approx((values.mean() - 0.196, values.mean() + 0.196), abs=0.02)
    assert mean_interval(np.array([7])) == (7.0, 7.0)


def test_a_bootstrap_resamples_rows_and_is_the_same_each_time():
    rows = np.stack([np.arange(50.0), -np.arange(50.0)], axis=1)
    assert bootstrap_interval(rows, np.sum) == (0.0, 0.0), "the columns of a row stay together"
    assert bootstrap_interval(rows[:, 0]) == bootstrap_interval(rows[:, 0])
    assert bootstrap_interval(rows[:, 0], seed=1) != bootstrap_interval(rows[:, 0])
    assert all(math.isnan(bound) for bound in bootstrap_interval(np.zeros(0)))


def test_an_undefined_resample_is_left_out():
    low, high = bootstrap_interval(np.array([1.0, np.nan, 1.0]), lambda rows: rows[0])
    assert (low, high) == (1.0, 1.0)
    assert all(math.isnan(bound) for bound in bootstrap_interval(np.array([np.nan])))


def test_the_interval_of_a_median_covers_it_in_95_of_100_draws():
    rng = np.random.default_rng(0)
    covered = [
        low <= math.log(2) <= high for low, high in (median_interval(rng.exponential(size=60)) for _ in range(500))
    ]
    assert 0.93 < np.mean(covered) < 0.99
    assert median_interval(np.array([4])) == (4.0, 4.0)


def test_the_interval_of_mean_recall_equals_a_bootstrap_of_the_examples():
    rng = np.random.default_rng(0)
    label = rng.integers(5, size=300)
    hit = rng.random(300) < np.linspace(0.2, 0.9, 5)[label]

    def mean_recall(rows):
        return np.mean([rows[rows[:, 0] == c, 1].mean() for c in np.unique(rows[:, 0])])

    expected = bootstrap_interval(np.stack([label, hit], axis=1).astype(float), mean_recall, resamples=600)
    seen = np.append(np.bincount(label, minlength=5), 0)  # one class never occurs
    hits = np.append(np.bincount(label, weights=hit, minlength=5).astype(int), 0)
    assert recall_interval(hits, seen) == pytest.approx(expected, abs=0.01)
