"""Held-out examples for the report: which ones, their thumbnails, and their embeddings by a model on its mesh.

One fixed set of pairs is embedded at every evaluation; a larger sample once, for predictions. Both are drawn from the
evaluators' sources, the same for every process and every run on the same data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from clipjax.config import EvaluatorConfig, ExperimentConfig
from clipjax.data.probe import some_of
from clipjax.data.records import RecordError
from clipjax.data.sources import Source
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from clipjax.eval.class_names import resolve_names
from clipjax.eval.class_prompts import class_prompts, embed_classes
from clipjax.inference.embed import global_batches
from clipjax.mesh import to_host
from clipjax.models.pixels import image_of
from clipjax.report.pictures import thumbnail
from clipjax.report.predictions import Gallery, classification, retrieval
from clipjax.runs.snapshots import Snapshot

PAIRS = 64  # pairs with different captions
SAMPLE = 1000  # records that are classified and searched
MOST_CAPTION = 500  # characters

Embed = tuple[Callable[..., Any], Callable[..., np.ndarray]]  # what clipjax.inference.make_embed returns


class HeldOut:
    """The held-out examples of an experiment with at least one evaluator. All processes call its methods together.

    sources: what open_evaluators returned. pairs: the document of snapshots/pairs.json, with the pairs' captions and
    thumbnails.
    """

    def __init__(
        self, config: ExperimentConfig, mesh: Mesh, tokenizer: Any, sources: dict[str, Source], embed: Embed
    ) -> None:
        self.config, self.mesh, self.tokenizer, self.sources, self.embed = config, mesh, tokenizer, sources, embed
        self.of_pairs = evaluator_of(config, RetrievalConfig) or next(iter(config.eval.evaluators))
        self.of_classes = evaluator_of(config, ZeroShotConfig)
        source = sources[self.of_pairs]
        self.indices, entries = choose_pairs(source)
        settings = config.eval.evaluators[self.of_pairs].source
        self.pairs = {"evaluator": self.of_pairs, "source": describe(settings), "pairs": entries}
        named = [(entry["key"], entry["caption"]) for entry in entries]
        self.pairs["id"] = hashlib.sha256(json.dumps([describe(settings), named]).encode()).hexdigest()

    def snapshot(self, variables: Any, step: int) -> Snapshot:
        """The pairs in the embedding space of these weights; pairs that could not be read are NaN."""
        found = self._embedded(variables, self.sources[self.of_pairs], self.indices)
        image, text = np.full((2, len(self.indices), self.config.model.embed_dim), np.nan, np.float32)
        rows = np.searchsorted(self.indices, found.index)
        image[rows], text[rows] = found.image, found.text
        return Snapshot(step, image, text, scale_of(variables))

    def predictions(self, variables: Any, step: int) -> dict[str, Any]:
        """The document of snapshots/predictions.json: classes and neighbours of a sample; see report/predictions.py."""
        document: dict[str, Any] = {"step": step, "logit_scale": scale_of(variables)}
        source = self.sources[self.of_pairs]
        gallery = self._gallery(variables, source)
        if len(gallery.index):
            document["retrieval"] = {**retrieval(gallery), "evaluator": self.of_pairs}
        if not self.of_classes:
            return document
        evaluator = self.config.eval.evaluators[self.of_classes]
        other = self.sources[self.of_classes]
        gallery = gallery if other is source else self._gallery(variables, other)
        names, lines = resolve_names(evaluator, other.class_names)
        texts = lambda tokens: self.embed[1](variables, tokens)  # noqa: E731
        prompts = class_prompts(evaluator, names, getattr(other, "templates", ()))
        classes, _ = embed_classes(names, prompts, self.tokenizer, texts, not_finite="against")
        found = classification(gallery, classes, names, lines, scale_of(variables))
        if found:
            document["classification"] = {**found, "evaluator": self.of_classes, "prompts": list(prompts.templates)}
        return document

    def _gallery(self, variables: Any, source: Source) -> Gallery:
        found = self._embedded(variables, source, some_of(source, SAMPLE))
        return Gallery(*found, lambda row: picture_and_caption(source, int(found.index[row])))

    def _embedded(self, variables: Any, source: Source, indices: np.ndarray) -> Embedded:
        images_of, texts_of = self.embed
        if not len(indices):
            embedding, column = np.zeros((0, self.config.model.embed_dim), np.float32), np.zeros(0, np.int32)
            return Embedded(embedding, embedding, column[:, None], column, column, column)
        columns: dict[str, list[np.ndarray]] = {name: [] for name in Embedded._fields}
        chosen = Chosen(source, indices)
        with contextlib.closing(global_batches(self.config, self.mesh, self.tokenizer, chosen)) as batches:
            for batch in batches:
                image = to_host(images_of(variables, image_of(batch)))
                wanted = ("text", "index", "label", "pair_id", "valid")
                text, index, label, pair_id, valid = to_host(tuple(batch[name] for name in wanted))
                columns["image"].append(np.asarray(image, np.float32)[valid])
                columns["text"].append(texts_of(variables, text[valid]))
                columns["tokens"].append(text[valid])
                columns["index"].append(indices[index[valid]])
                columns["label"].append(label[valid])
                columns["pair_id"].append(pair_id[valid])
        return Embedded(*(np.concatenate(columns[name]) for name in Embedded._fields))


class Embedded(NamedTuple):
    """The records that could be read: [m, D] float32 embeddings of images and first captions, and [m] columns."""

    image: np.ndarray
    text: np.ndarray
    tokens: np.ndarray  # [m, L] int32, of the captions
    index: np.ndarray  # of the record in its source
    label: np.ndarray
    pair_id: np.ndarray


class Chosen:
    """Some records of a source, as a source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices, self.class_names = source, indices, source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def where(self, index: int) -> tuple[str, int]:
        return self.source.where(int(self.indices[index]))


def evaluator_of(config: ExperimentConfig, kind: type[EvaluatorConfig]) -> str | None:
    """The first evaluator with options of this kind."""
    return next((name for name, found in config.eval.evaluators.items() if isinstance(found, kind)), None)


def choose_pairs(source: Source, count: int = PAIRS) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """([n] increasing indices, n entries {"key", "caption", "image"}) of up to `count` pairs with different captions.

    They are drawn at random from all of the source, always the same ones; records that cannot be read are left out.
    "image" is a thumbnail as a data URI.
    """
    candidates = np.random.default_rng(0).permutation(some_of(source, 8 * count))
    entries: dict[int, dict[str, Any]] = {}
    seen = set()
    for index in map(int, candidates):
        if len(entries) == count:
            break
        try:
            picture, caption, key = picture_and_caption(source, index)
        except RecordError:
            continue
        if caption.strip() not in seen:
            seen.add(caption.strip())
            entries[index] = {"key": key, "caption": caption, "image": picture}
    order = sorted(entries)
    return np.array(order, int), [entries[index] for index in order]


def picture_and_caption(source: Source, index: int) -> tuple[str, str, str]:
    """(thumbnail as a data URI, first caption, key) of a record. Raises RecordError."""
    record = source[index]
    caption = (record["texts"] or [""])[0]
    return thumbnail(record["image"]), caption[:MOST_CAPTION], str(record["key"])


def scale_of(variables: Any) -> float:
    """The number by which the model multiplies cosines: 1 / temperature."""
    return float(np.exp(np.asarray(to_host(variables["params"]["logit_scale"]))))


def describe(settings: Any) -> str:
    """'data/scenes, split validation'"""
    return f"{settings.path}, split {settings.split}"
