"""The plane of the embedding space is exact, the same every time, and there whatever the embeddings are."""

import numpy as np
import pytest

from clipjax.report.projection import fit_plane, measures, plane_of
from clipjax.runs.snapshots import Snapshot


def test_axes_are_the_two_largest_eigenvectors_of_the_covariance():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 6)) * [5, 1, 3, 0.5, 0.1, 1] + 7
    plane = fit_plane(points)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    np.testing.assert_allclose(np.abs(plane.axes @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(plane.share, values[::-1][:2] / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(plane.project(points).mean(axis=0), 0, atol=1e-9)
    largest = np.abs(plane.axes).argmax(axis=1)
    assert (plane.axes[[0, 1], largest] > 0).all(), "an axis has one sign, whatever the platform's SVD gives"


def test_points_on_a_line_or_in_one_place_have_no_second_or_no_axis():
    line = fit_plane(np.arange(4.0)[:, None] * np.array([3.0, 4.0]))
    np.testing.assert_allclose(line.axes, [[0.6, 0.8], [0, 0]], atol=1e-12)
    place = fit_plane(np.ones((3, 2)))
    assert not place.axes.any() and not place.share.any()
    assert fit_plane(np.ones((3, 1))).axes.shape == (2, 1)


def test_the_plane_is_the_last_snapshots_that_has_numbers():
    rng = np.random.default_rng(0)
    first, last = (Snapshot(step, *rng.normal(size=(2, 5, 4)), 1.0) for step in (0, 10))
    broken = Snapshot(20, np.full((5, 4), np.nan), np.full((5, 4), np.nan), 1.0)
    expected = fit_plane(np.concatenate([last.image, last.text]))
    np.testing.assert_array_equal(plane_of([first, last, broken]).axes, expected.axes)
    assert np.isfinite(plane_of([broken]).axes).all()


def test_measures_of_two_pairs():
    image, text = np.eye(2), np.array([[0.6, 0.8], [0.8, 0.6]])
    found = measures(Snapshot(0, image, text, 1.0))
    assert found["own"] == pytest.approx(0.6) and found["other"] == pytest.approx(0.8)
    assert found["gap"] == pytest.approx(np.hypot(0.2, 0.2)) and (found["right"], found["pairs"]) == (0, 2)
    assert measures(Snapshot(0, image, image, 1.0))["right"] == 2
    assert measures(Snapshot(0, np.ones((2, 2)), np.ones((2, 2)), 1.0))["right"] == 0, "ties count against the model"
    nothing = measures(Snapshot(0, np.full((2, 2), np.nan), image, 1.0))
    assert (nothing["own"], nothing["gap"], nothing["right"]) == (None, None, 0)
    assert measures(Snapshot(0, image[:1], image[:1], 1.0))["other"] is None
