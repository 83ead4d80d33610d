"""Equal texts have equal embeddings, to the last bit, so that their scores tie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class DistinctTexts:
    """Embeds each distinct row of tokens once.

    A row that is padded to another length, because of longer texts in its block, would have an embedding that differs
    in the last bits.
    """

    def __init__(self, embed_texts: Callable[[np.ndarray], np.ndarray]):
        """embed_texts: tokens [N, L] int32 -> [N, D]. All processes add the same tokens."""
        self.embed_texts = embed_texts
        self.places: list[int] = []  # of each row that was added, among the distinct ones
        self._place_of: dict[bytes, int] = {}
        self._parts: list[np.ndarray] = []

    def add(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the embeddings of those rows of tokens [N, L] that are new, which rows they are)."""
        tokens, new = np.asarray(tokens), []
        for number, row in enumerate(tokens):
            key = row.tobytes()
            if key not in self._place_of:
                self._place_of[key] = len(self._place_of)
                new.append(number)
            self.places.append(self._place_of[key])
        rows = np.array(new, np.int64)
        self._parts.append(self.embed_texts(tokens[rows]))
        return self._parts[-1], rows

    def embeddings(self) -> np.ndarray:
        """[M, D]: of all rows that were added, in their order."""
        return np.concatenate(self._parts)[self.places]
