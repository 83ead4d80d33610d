"""What a model makes of a sample of held-out records: classes, neighbours and confusions, as JSON values.

Everything here is NumPy on embeddings; clipjax.report.held_out makes them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

SAMPLES = 12  # images whose probabilities are shown
BARS = 5  # classes of each, beside the right one
QUERIES = 6  # of each direction of retrieval
HITS = 5  # answers of each query
CONFUSIONS = 12  # pairs of classes


class Gallery(NamedTuple):
    """Embedded records; `show(row)` gives a row's thumbnail (a data URI), first caption and key."""

    image: np.ndarray  # [n, D] float32 of unit length
    text: np.ndarray  # [n, D], of the first captions
    tokens: np.ndarray  # [n, L], of the first captions
    index: np.ndarray  # [n], in the source
    label: np.ndarray  # [n], -1: none
    pair_id: np.ndarray  # [n], -1: matches only itself
    show: Callable[[int], tuple[str, str, str]]


def classification(
    gallery: Gallery, classes: np.ndarray, names: Sequence[str], lines: Sequence[int], logit_scale: float
) -> dict[str, Any] | None:
    """Zero-shot predictions of the gallery's labelled images; None without any.

    classes: [C, D], the embeddings of the names' prompts. lines: the class of each label. Probabilities are the softmax
    of logit_scale times the cosines over all classes. Returns {"images", "classes", "top1", "samples": [{"image",
    "key", "label", "rank", "bars": [[name, probability, right], ...]}], "confusions": [{"label", "predicted", "count",
    "of", "image", "other"}]}: of the images of class "label", `count` of `of` were taken for "predicted"; "image" is
    one of them, and "other" an image of the class "predicted" (None if the sample has none). An image whose scores are
    not finite has no prediction: it is wrong, and in no confusion.
    """
    rows = np.flatnonzero((gallery.label >= 0) & (gallery.label < len(lines)))
    if not len(rows):
        return None
    right = np.asarray(lines, int)[gallery.label[rows]]
    scores = gallery.image[rows] @ classes.T
    finite = np.isfinite(scores).all(axis=1)
    scores = np.where(finite[:, None], scores, 0.0)
    own = scores[np.arange(len(rows)), right]
    rank = np.sum(scores >= own[:, None], axis=1)  # ties count against the model
    rank = np.where(finite, rank, len(names))
    best = np.argmax(scores, axis=1)
    probability = softmax(logit_scale * scores)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(int))
    return {
        "images": len(rows),
        "classes": len(names),
        "top1": float(np.mean(rank == 1)),
        "samples": [
            {
                "image": gallery.show(rows[i])[0],
                "key": gallery.show(rows[i])[2],
                "label": names[right[i]],
                "rank": int(rank[i]),
                "bars": bars(probability[i], right[i], names) if finite[i] else [],
            }
            for i in chosen
        ],
        "confusions": confusions(gallery, rows[finite], right[finite], best[finite], names),
    }


def bars(probability: np.ndarray, right: int, names: Sequence[str]) -> list[list[Any]]:
    """[[name, probability, whether it is the right class], ...]: the most probable classes, and the right one."""
    top = [int(i) for i in np.argsort(-probability, kind="stable")[:BARS]]
    shown = top if right in top else [*top, int(right)]
    return [[names[i], float(probability[i]), bool(i == right)] for i in shown]


def confusions(
    gallery: Gallery, rows: np.ndarray, right: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """The pairs of classes that are most often confused; see classification. The more frequent pair comes first."""
    wrong = right != predicted
    pairs = collections.Counter(zip(right[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    of_class = collections.Counter(right.tolist())
    found = []
    # Of equally frequent pairs, the one with the larger share of its class comes first.
    for (own, other), count in sorted(pairs.items(), key=lambda p: (-p[1], of_class[p[0][0]], p[0]))[:CONFUSIONS]:
        taken = np.flatnonzero((right == own) & (predicted == other))[0]
        others = np.flatnonzero(right == other)
        found.append(
            {
                "label": names[own],
                "predicted": names[other],
                "count": count,
                "of": of_class[own],
                "image": gallery.show(rows[taken])[0],
                "other": gallery.show(rows[others[0]])[0] if len(others) else None,
            }
        )
    return found


def retrieval(gallery: Gallery) -> dict[str, Any]:
    """The nearest images of some captions and the nearest captions of some images, within the gallery.

    Returns {"records", "by_text", "by_image"}, lists of {"image", "caption", "rank", "hits": [{"image" or "caption",
    "cosine", "right"}]}, where "image" and "caption" are the query's own pair. Records with equal pair_id, and with
    equal captions (to the tokenizer), match.
    """
    finite = np.flatnonzero(np.isfinite(gallery.image).all(axis=1) & np.isfinite(gallery.text).all(axis=1))
    chosen = finite[np.unique(np.linspace(0, max(len(finite) - 1, 0), min(QUERIES, len(finite))).astype(int))]
    match = lambda row: _matches(gallery, row)  # noqa: E731
    document: dict[str, Any] = {"records": len(gallery.index), "by_text": [], "by_image": []}
    for row in chosen:
        for name, query, answers in (
            ("by_text", gallery.text[row], gallery.image),
            ("by_image", gallery.image[row], gallery.text),
        ):
            document[name].append(_query(gallery, row, query, answers, match(row), image=name == "by_text"))
    return document


def _query(
    gallery: Gallery, row: int, query: np.ndarray, answers: np.ndarray, right: np.ndarray, *, image: bool
) -> dict[str, Any]:
    scores = np.nan_to_num(answers @ query, nan=-np.inf)
    order = np.argsort(-scores, kind="stable")
    best = scores[right].max()
    hits: list[dict[str, Any]] = []
    seen = set()
    for other in order:
        picture, caption, _ = gallery.show(other)
        if not image and caption in seen:  # a caption that repeats is one answer
            continue
        seen.add(caption)
        content = {"image": picture} if image else {"caption": caption}
        hits.append({**content, "cosine": float(scores[other]), "right": bool(right[other])})
        if len(hits) == HITS:
            break
    picture, caption, _ = gallery.show(row)
    rank = 1 + int(np.sum((scores >= best) & ~right))
    return {"image": picture, "caption": caption, "rank": rank, "hits": hits}


def _matches(gallery: Gallery, row: int) -> np.ndarray:
    """[n] bool: the records that match a record."""
    own = gallery.pair_id[row]
    same = np.arange(len(gallery.index)) == row
    return same | ((gallery.pair_id == own) & (own >= 0)) | (gallery.tokens == gallery.tokens[row]).all(axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
