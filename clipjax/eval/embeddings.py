"""Embeddings that are not numbers: refused with the record they belong to, or counted against the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

NotFinite = Literal["error", "against"]
Where = Callable[[int], tuple[str, int]]  # (index of a record) -> (its file, its position there)


class EmbeddingError(ValueError):
    """An embedding holds NaN or an infinity; the message names the record or the prompt."""


def broken_rows(embedding: np.ndarray, not_finite: NotFinite) -> np.ndarray:
    """The numbers of the rows of [N, D] that are to be refused: those that are not finite; none for "against"."""
    return np.flatnonzero(~np.isfinite(embedding).all(axis=1)) if not_finite == "error" else np.zeros(0, np.int64)


def not_finite_error(what: str, broken: np.ndarray, total: int) -> EmbeddingError:
    """The error about broken rows of `total`; what: what the first of them is the embedding of."""
    others = f" ({len(broken)} of the {total} embedded with it are)" if len(broken) > 1 else ""
    return EmbeddingError(
        f"The embedding of {what} is not finite{others}: it holds NaN or infinity. Are the weights whole? To count "
        "such embeddings as wrong answers instead, set the evaluator's not_finite='against'."
    )


def record_name(index: int, where: Where | None) -> str:
    """A record as messages name it: its file and its position there."""
    return "{} record {}".format(*where(index)) if where else f"record {index}"
