"""Means, t-tests and Holm's correction over seeds give the numbers that SciPy gives on the same arrays."""

import math

import numpy as np
import pytest
from scipy import stats

from clipjax.report.statistics import difference, holm, spread

A = {0: 0.52, 1: 0.55, 2: 0.50, 3: 0.58}
B = {0: 0.48, 1: 0.54, 2: 0.47, 3: 0.52}


def test_the_spread_is_the_standard_deviation_of_a_sample():
    found = spread([1.0, 2.0, 4.0])
    assert (found.mean, found.count) == (pytest.approx(7 / 3), 3)
    assert found.deviation == pytest.approx(math.sqrt(7 / 3))
    assert math.isnan(spread([1.0]).deviation) and math.isnan(spread([]).mean)


def test_shared_seeds_give_the_paired_t_test_and_its_interval():
    found = difference(A, B)
    expected = stats.ttest_rel(list(A.values()), list(B.values()))
    assert (found.test, found.count) == ("paired", 4)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(list(A.values())) - np.mean(list(B.values())))


def test_only_shared_seeds_enter_a_paired_test_whatever_their_order():
    found = difference({3: 0.58, 0: 0.52, 9: 0.0}, {7: 9.0, 0: 0.48, 3: 0.52})
    assert found == difference({0: 0.52, 3: 0.58}, {0: 0.48, 3: 0.52})


def test_other_seeds_give_welchs_t_test_and_its_interval():
    other = {10: 0.48, 11: 0.54, 12: 0.47}
    found = difference(A, other)
    expected = stats.ttest_ind(list(A.values()), list(other.values()), equal_var=False)
    assert found.test == "welch"
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)


def test_a_difference_of_one_shared_seed_of_several_says_which():
    found = difference({0: 0.0, 1: 0.014}, {0: 0.455})
    assert found.mean == pytest.approx(-0.455)
    assert (
        "that of seed 0, the only one that both have, but the means are over all seeds (2 here, 1 in the baseline)"
        in found.why_not
    )
    assert "only one" not in difference({0: 0.0}, {0: 0.455}).why_not


@pytest.mark.parametrize(
    ("values", "baseline", "mean", "why"),
    [
        ({0: 0.5}, {0: 0.4}, 0.1, "one seed"),
        ({0: 0.5}, {1: 0.4}, 0.1, "single seed"),
        ({0: 0.5, 1: 0.5}, {2: 0.4}, 0.1, "single seed"),
        ({}, {0: 0.4}, math.nan, "no value"),
        ({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}, 0.0, "all values are equal"),
        ({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.6}, 0.1, "nothing to test by"),
    ],
)
def test_where_nothing_can_be_tested_it_says_why(values, baseline, mean, why):
    found = difference(values, baseline)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert found.test == "" and why in found.why_not and not found.significant
    assert all(math.isnan(value) for value in (found.low, found.high, found.p, found.corrected))


def test_holm_multiplies_the_smallest_p_by_their_number_and_never_falls():
    pairs = [difference({0: x, 1: x + 0.01, 2: x - 0.01 * y}, {0: 0.0, 1: 0.0, 2: 0.0}) for x, y in PLACES]
    found = holm([None, *pairs, difference({0: 1.0}, {0: 0.0})])
    p = np.array([pair.p for pair in pairs])
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.minimum(1, p[order] * (len(p) - np.arange(len(p)))))
    assert [pair.corrected for pair in np.array(found[1:-1], object)[order]] == pytest.approx(list(steps))
    assert found[0] is None and math.isnan(found[-1].corrected)


PLACES = [(0.5, 1), (0.02, 2), (0.05, 1), (0.001, 1)]
