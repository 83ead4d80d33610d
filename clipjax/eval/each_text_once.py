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
        tokens = np.asarray(tokens)
        keys = [row.tobytes() for row in tokens]
        new = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._place_of}
        rows = np.array(sorted(new.values()), np.int64)
        embedding = self.embed_texts(tokens[rows])
        self._parts.append(embedding)
        start = len(self._place_of)
        self._place_of.update((keys[row], start + number) for number, row in enumerate(rows))
        self.places += [self._place_of[key] for key in keys]
        return embedding, rows

    def embeddings(self) -> np.ndarray:
        """[M, D]: of all rows that were added, in their order."""
        return np.concatenate(self._parts)[self.places]
