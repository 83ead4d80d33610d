"""A plane through the embedding space: principal component analysis, exact and the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax.runs.snapshots import Snapshot


class Plane(NamedTuple):
    """The plane of the two largest variances of some points."""

    mean: np.ndarray  # [D]
    axes: np.ndarray  # [2, D], orthonormal
    share: np.ndarray  # [2], of the variance

    def project(self, points: np.ndarray) -> np.ndarray:
        """[..., D] -> [..., 2]"""
        return (points - self.mean) @ self.axes.T


def fit_plane(points: np.ndarray) -> Plane:
    """The first two principal components of [m, D] points; rows that are not finite are left out.

    The sign of an axis is such that its largest component is positive. Where the points span less than a plane, the
    missing axes are zero.
    """
    points = np.asarray(points, np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    mean = points.mean(axis=0) if len(points) else np.zeros(points.shape[1])
    _, spread, components = np.linalg.svd(points - mean, full_matrices=False)
    axes, share = np.zeros((2, points.shape[1])), np.zeros(2)
    total = np.sum(spread**2)
    for i in range(min(2, len(spread))):
        if spread[i] > 1e-9 * max(1.0, spread[0]):
            largest = np.argmax(np.abs(components[i]))
            axes[i] = components[i] * np.sign(components[i, largest])
            share[i] = spread[i] ** 2 / total
    return Plane(mean, axes, share)


def plane_of(snapshots: Sequence[Snapshot]) -> Plane:
    """The plane of the images and texts of the last snapshot that has numbers; all snapshots are projected on it."""
    both = [np.concatenate([found.image, found.text]) for found in snapshots]
    finite = [points for points in both if np.isfinite(points).all(axis=1).sum() > 1]
    return fit_plane((finite or both)[-1])


def measures(snapshot: Snapshot) -> dict[str, Any]:
    """How well a snapshot's pairs are aligned: {"own", "other", "gap", "right", "pairs"}.

    own, other: the mean cosine of matching and of other pairs. gap: the distance between the mean image and the mean
    text (the modality gap of 2203.02053). right: how many images are nearer to their own caption than to any other;
    ties count against the model. None where there are no numbers.
    """
    similarity = snapshot.similarity
    n = len(similarity)
    diagonal = np.diag(similarity)
    others = similarity[~np.eye(n, dtype=bool)]
    with np.errstate(invalid="ignore"):
        beaten = np.where(np.eye(n, dtype=bool), -np.inf, similarity).max(axis=1, initial=-np.inf)
        right = int(np.sum(diagonal > beaten))
    gap = np.linalg.norm(_mean(snapshot.image) - _mean(snapshot.text))
    values = {"own": _mean(diagonal), "other": _mean(others), "gap": gap}
    numbers = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
    return {**numbers, "right": right, "pairs": n}


def _mean(values: np.ndarray) -> Any:
    """The mean over the first axis, without rows that are not finite; NaN without any."""
    finite = np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(axis=1)
    return values[finite].mean(axis=0) if finite.any() else np.full(values.shape[1:], np.nan)
