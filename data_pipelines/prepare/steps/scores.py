"""Scores with a model how well an image and its captions agree, and chooses by the score.

DataComp (Gadre et al. 2023, arXiv:2304.14108, section 3.4): keeps records above a threshold of the cosine of CLIP's
embeddings, or the best fraction of them.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator

import numpy as np

from clipjax.data.records import RecordError
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.steps.repeats import without
from data_pipelines.prepare.types import Example, Note, Row

BINS_PER_UNIT = 10_000  # the threshold for a fraction is exact to a ten-thousandth
_BATCH = 64
_LOCK = threading.Lock()  # workers may be threads of one process, which share one model


def score(examples: list[Example], options: Options) -> list[Example]:
    """Each example with the cosine of its image with each of its captions, rounded to BINS_PER_UNIT."""
    if not examples:
        return examples
    with _LOCK:
        loaded = _load(options.clip_model)
        images = loaded.embed_images([example.image for example in examples])
        texts = loaded.embed_texts([text for example in examples for text in example.texts])
    owners = np.repeat(np.arange(len(examples)), [len(example.texts) for example in examples])
    cosines = np.round(np.sum(images[owners] * texts, axis=-1, dtype=np.float64) * BINS_PER_UNIT) / BINS_PER_UNIT
    starts = np.searchsorted(owners, np.arange(len(examples)))
    return [
        dataclasses.replace(example, scores=tuple(cosines[start : start + len(example.texts)].tolist()))
        for example, start in zip(examples, starts, strict=True)
    ]


def count(row: Row, options: Options) -> Iterator[str]:
    """The bin of the row's best caption."""
    yield str(round(max(row.scores) * BINS_PER_UNIT))


def threshold(counts: dict[str, int], options: Options) -> float:
    """The largest score that at least top_fraction of the rows reach, or min_score if that is larger."""
    if not options.top_fraction:
        return options.min_score
    wanted, reached = options.top_fraction * sum(counts.values()), 0
    for score in sorted(map(int, counts), reverse=True):
        reached += counts[str(score)]
        if reached >= wanted:
            return max(options.min_score, score / BINS_PER_UNIT)
    return options.min_score


def choose(row: Row, threshold: float, options: Options, note: Note) -> Row:
    """The row without the captions below the threshold. Raises RecordError where none is left."""
    if max(row.scores) < threshold:
        raise RecordError("CLIP score below the threshold", f"{max(row.scores):.4f}: {' | '.join(row.texts)}")
    return without(row, [score < threshold for score in row.scores], "CLIP score below the threshold", note)


@functools.cache
def _load(path: str):
    import clipjax

    loaded = clipjax.load(path, batch_size=_BATCH)
    if loaded.tokenizer is None:
        raise PipelineError(f"--clip_model={path} has no tokenizer, so that captions cannot be scored.")
    return loaded
