"""Equal texts have equal embeddings, to the last bit, so that their scores tie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

EmbedTexts = Callable[[np.ndarray], np.ndarray]


def each_text_once(embed_texts: EmbedTexts) -> EmbedTexts:
    """embed_texts (tokens [N, L] -> [N, D]) that gives a row what it gave it before, whatever texts stand beside it.

    A row that is padded to another length, because of longer texts in its block, has an embedding that differs in the
    last bits. The embeddings of all distinct rows are kept. All processes call it with the same tokens.
    """
    known: dict[bytes, np.ndarray] = {}

    def embed(tokens: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens)
        keys = [row.tobytes() for row in tokens]
        new = {key: number for number, key in enumerate(keys) if key not in known}
        if not keys:
            return embed_texts(tokens)
        if new:
            known.update(zip(new, embed_texts(tokens[list(new.values())]), strict=True))
        return np.stack([known[key] for key in keys])

    return embed
