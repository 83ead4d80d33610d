"""Long-CLIP's own files (2403.15378): OpenAI's names, a ViT, and two tables of 248 text positions.

Their text tower adds the first 20 rows of one table, which are CLIP's, and the others of the second. clipjax has one
table of the rows that count, and writes it as both. Sizes are read from the tensors, as for OpenAI's files.
"""

from __future__ import annotations

import numpy as np

from clipjax.config import ModelConfig
from clipjax.interop import open_clip, openai
from clipjax.interop.layouts import Layout
from clipjax.interop.names import Description, Family, Tensor

KEPT = 20  # rows of the first table that count
TABLES = ("positional_embedding", "positional_embedding_res")
_both = Layout(lambda theirs: np.concatenate([theirs[0][:KEPT], theirs[1][KEPT:]]), lambda ours: [ours, ours])


def tensors(model: ModelConfig) -> list[Tensor]:
    """The table of names."""
    ours = "text/position_embedding"
    return [Tensor(ours, TABLES, _both) if tensor.ours == ours else tensor for tensor in open_clip.tensors(model)]


def matches(description: Description) -> bool:
    """Whether there are two tables of text positions."""
    return {*TABLES, openai.VIT_ONLY} <= {open_clip.renamed(name) for name in description.shapes}


FAMILY = Family(
    tensors,
    matches,
    openai.read,
    write=openai.write,
    renamed=open_clip.renamed,
    **open_clip.OPTIONS | dict(format="long_clip", weights="model.pt", read_pixels=None),
)
