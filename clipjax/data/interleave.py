"""Places dealt to parts by weight, evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PERIOD = 252_000  # 2^5 3^2 5^3 7: shares in per mille, thirds, sixths, sevenths and ninths are exact


def places_of(weights: Sequence[float]) -> np.ndarray:
    """[K] int64: how many of a period's places each part has. Sum PERIOD; each less than 1 from its share."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * PERIOD
    # 0.1 / 0.3 is not 1/3: what is a whole number but for rounding is that number.
    exact = np.where(np.abs(exact - np.round(exact)) < 1e-6, np.round(exact), exact)
    counts = np.floor(exact).astype(np.int64)
    most_wanting = np.argsort(counts - exact, kind="stable")
    counts[most_wanting[: PERIOD - counts.sum()]] += 1
    return counts


def interleave(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n] part of each place, [n] how many earlier places are that part's), n = sum of counts.

    The j-th place of a part with the share w wants to be at (j + 1/2) / w; places are dealt in this order. At any
    time t each part then has t w places but for 1/2, and all together t but for K / 2, from which Interleaved's bound
    follows.
    """
    parts = np.repeat(np.arange(len(counts)), counts)
    earlier = np.concatenate([np.arange(count) for count in counts])
    # Equal times come out equal: both numbers are integers below 2^53, and division rounds correctly.
    wanted = (2 * earlier + 1) * counts.sum() / counts[parts]
    order = np.argsort(wanted, kind="stable")
    return parts[order].astype(np.int16), earlier[order].astype(np.int32)
