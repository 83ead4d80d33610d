"""Image -> text and text -> image retrieval: recall at 1, 5 and 10, median and mean rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import EvaluatorConfig, require
from clipjax.config.fields import runtime
from clipjax.eval.class_names import Ties
from clipjax.eval.distinct_texts import DistinctTexts
from clipjax.eval.embeddings import NotFinite, Where, broken_rows, not_finite_error, record_name
from clipjax.eval.intervals import mean_interval, median_interval, wilson_interval
from clipjax.eval.ranks import MAX_SCORES, ranks
from clipjax.mesh import to_host

__all__ = ["MAX_SCORES", "RetrievalConfig", "evaluate", "ranks"]

RECALLS = (1, 5, 10)
NAMES = (*(f"r{k}" for k in RECALLS), "median_rank", "mean_rank")
MEAN_RECALL = "mean_recall@1"  # DataComp's name
MANY_REPEATED = 0.1  # share of captions that other images also have, above which a warning is logged


@dataclass(frozen=True)
class RetrievalConfig(EvaluatorConfig):
    """The options of image-to-text and text-to-image retrieval."""

    name: str = "retrieval"
    published_task: ClassVar[str] = "zeroshot_retrieval"
    published_names: ClassVar[Mapping[str, str]] = {
        f"{theirs}_retrieval_recall@{k}": f"{ours}_r{k}"
        for k in (5, 1, 10)
        for theirs, ours in (("image", "text_to_image"), ("text", "image_to_text"))
    }
    all_captions: bool = runtime(False)  # every caption of a record takes part (COCO, Flickr30k), not only its first
    ties: Ties = runtime("against")  # equal scores: against the model, or the candidate with the lowest index is first
    not_finite: NotFinite = runtime("error")  # NaN embeddings: refused, or counted as wrong answers

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        both = [f"{way}_{name}" for way in ("image_to_text", "text_to_image") for name in NAMES]
        shown = [f"{name}{bound}" for name in (*both, MEAN_RECALL) for bound in ("", "_low", "_high")]
        counts = "examples", "distinct_pairs", "unreadable", "repeated_captions"
        return (*shown, *counts, *(("captions",) if self.all_captions else ()))


def evaluate(
    config: RetrievalConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
    tokenizer: Callable[[Sequence[str]], np.ndarray] | None = None,
    captions: Callable[[int], Sequence[str]] | None = None,
    where: Where | None = None,
    **_: object,
) -> dict[str, Any]:
    """Recalls of every record's image against every record's caption, both ways. All processes call it together.

    By default only a record's first caption takes part. With config.all_captions, `captions` gives all captions of a
    record by its index: each is a query of its own, and an image's match is the best of its captions.

    Records with the same pair_id match each other (several images of one caption, or repeats); one with -1 matches
    only itself. See clipjax.eval.ranks for the rank of a match, and for ties and scores that are not finite.
    Returns image_to_text_r1, _r5, _r10, _median_rank, _mean_rank, the same for text_to_image, mean_recall@1 (the mean
    of both r1), each with a 95% interval (_low, _high), examples and, with all_captions, captions. Intervals: Wilson's
    for recalls, order statistics for the median, a normal approximation for the mean rank, and for mean_recall@1 a
    bootstrap over records with their captions; distinct_pairs, the number of records of which those that match count
    once (1: nothing can be ranked wrongly, which is logged); unreadable, the number of bad records; and
    repeated_captions, the captions with the tokens of a caption of an image with another id, which no model can tell
    apart. Raises ConfigError when no record could be read or none has a caption, EmbeddingError for an embedding that
    is not finite.
    """
    found = _embedded(config, batches, embed_images, embed_texts, tokenizer, captions, where)
    text_id = np.repeat(found.image_id, found.counts)
    numbers: dict[str, Any] = {}
    first: list[np.ndarray] = []
    for name, query, query_id, candidate, candidate_id in (
        ("image_to_text", found.image, found.image_id, found.text, text_id),
        ("text_to_image", found.text, text_id, found.image, found.image_id),
    ):
        rank = ranks(query, candidate, query_id, mesh, candidate_id=candidate_id, ties=config.ties)
        numbers |= {f"{name}_{key}": value for key, value in summary(rank).items()}
        first.append(rank == 1)
    numbers |= mean_recall(first[0], first[1], found.counts)
    numbers |= {"examples": len(found.image), "distinct_pairs": found.distinct}
    numbers |= {"unreadable": found.unreadable, "repeated_captions": found.repeated}
    if config.all_captions:
        numbers["captions"] = len(found.text)
    return {**numbers, "details": {"ties": config.ties, "not_finite": config.not_finite}}


def summary(rank: np.ndarray) -> dict[str, float]:
    """r1, r5, r10, median_rank and mean_rank of [N] ranks from 1, each with its 95% interval (_low, _high)."""
    values: dict[str, tuple[float, tuple[float, float]]] = {}
    for k in RECALLS:
        values[f"r{k}"] = float(np.mean(rank <= k)), wilson_interval(int(np.sum(rank <= k)), len(rank))
    values["median_rank"] = float(np.median(rank)), median_interval(rank)
    low, high = mean_interval(rank)
    values["mean_rank"] = float(np.mean(rank)), (max(1.0, low), high)
    return {
        key: number
        for name, (value, (low, high)) in values.items()
        for key, number in ((name, value), (f"{name}_low", low), (f"{name}_high", high))
    }


def mean_recall(image_first: np.ndarray, text_first: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """mean_recall@1, the mean of the recalls at 1 of both directions, with its interval over records.

    image_first: [N] bool, text_first: [sum of counts] bool, counts: [N], the captions of each record.
    """
    text_hits = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=text_first, minlength=len(counts))
    records = np.stack([image_first, text_hits, counts], axis=1).astype(np.int64)
    kinds, number = np.unique(records, axis=0, return_counts=True)

    def recall(times: np.ndarray) -> float:
        images, texts, captions = times @ kinds
        return float("nan") if captions == 0 else float(images / times.sum() + texts / captions) / 2

    # Records of a kind are alike: a resample of them is a draw of how many there are of each kind.
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(records), number / len(records), size=1000)
    low, high = np.nanpercentile([recall(times) for times in drawn], [2.5, 97.5])
    return {MEAN_RECALL: recall(number), f"{MEAN_RECALL}_low": float(low), f"{MEAN_RECALL}_high": float(high)}


class _Embedded(NamedTuple):
    image: np.ndarray  # [N, D]
    text: np.ndarray  # [M, D], the captions of the first image, then those of the second, ...
    counts: np.ndarray  # [N] int, the captions of each image; M in all
    image_id: np.ndarray  # [N] int; images of one id match each other's captions
    distinct: int  # ids of images
    unreadable: int  # bad records
    repeated: int  # captions with the tokens of a caption of an image with another id


def _embedded(
    config: RetrievalConfig,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray] | None,
    captions: Callable[[int], Sequence[str]] | None,
    where: Where | None,
) -> _Embedded:
    """The embeddings of all records that could be read. Raises as evaluate does."""
    data = f"{config.source.path}, split '{config.source.split}'"
    images, counts, pair_ids, unreadable, texts = [], [], [], 0, DistinctTexts(embed_texts)
    for batch in batches():
        columns = (batch["text"], batch["pair_id"], batch["valid"], batch.get("index", batch["pair_id"]))
        image, text, pair_id, valid, index = to_host((embed_images(batch), *columns))
        unreadable += int(np.sum(~valid & (index >= 0)))
        image, text, index = image[valid], text[valid], index[valid]
        own = [1] * len(index)
        if config.all_captions and captions:
            of_records = [captions(int(i)) for i in index]
            own = [len(texts_of_one) for texts_of_one in of_records]
            text = tokenizer([caption for texts_of_one in of_records for caption in texts_of_one])
        embedding, new = texts.add(text)
        for what, rows, record in (("image", image, index), ("caption", embedding, np.repeat(index, own)[new])):
            if len(broken := broken_rows(rows, config.not_finite)):
                place = record_name(int(record[broken[0]]), where)
                raise not_finite_error(f"the {what} of {config.source.path}, {place}", broken, len(rows))
        images.append(image)
        counts += own
        pair_ids.append(pair_id[valid])
    require(sum(map(len, images)) > 0, f"{data}: no record could be read.")
    require(len(texts.places) > 0, f"{data}: the gallery is empty, because no record has a caption.")
    image, pair_id = np.concatenate(images), np.concatenate(pair_ids)
    # A record without a pair_id gets one of its own, smaller than any that is given.
    image_id = np.where(pair_id < 0, -2 - np.arange(len(pair_id)), pair_id)
    found = np.asarray(counts, np.int64)
    repeated = repeated_captions(texts.places, np.repeat(image_id, found).tolist())
    if repeated > MANY_REPEATED * len(texts.places):
        logging.warning(
            "%s: %d of %d captions also belong to other images, so no model can find the one image that counts as "
            "right. Give records with the same content the same pair_id, and see with clipjax check whether the "
            "tokenizer knows the captions' words.", data, repeated, len(texts.places),
        )  # fmt: skip
    distinct = len(np.unique(image_id))
    if distinct == 1:
        why = "there is one image" if len(image) == 1 else f"all {len(image)} images share one pair_id"
        logging.warning(
            "%s: %s, so no caption is wrong for any image: every rank is 1 and every recall 100%%, whatever the model. "
            "Evaluate on data with different captions.", data, why,
        )  # fmt: skip
    return _Embedded(image, texts.embeddings(), found, image_id, distinct, unreadable, repeated)


def repeated_captions(captions: Sequence[int], image_ids: Sequence[int]) -> int:
    """The number of captions that an image with another id has too. Both: one a caption; equal: the same text."""
    images_of: dict[int, set[int]] = {}
    for caption, image_id in zip(captions, image_ids, strict=True):
        images_of.setdefault(caption, set()).add(image_id)
    return sum(len(images_of[caption]) > 1 for caption in captions)
