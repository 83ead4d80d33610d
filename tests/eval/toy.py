"""Evaluators on embeddings made here: a text's is a fixed random vector, an image's is given."""

from __future__ import annotations

from numbers import Integral

import jax
import numpy as np

from clipjax.config.metrics import is_count
from clipjax.mesh import batch_sharding

DIM, BATCH = 16, 32


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Texts:
    """Every text has one token, and every token a random embedding, drawn in the order of first use."""

    def __init__(self, seed=0, dim=DIM):
        self.number, self.rows, self.rng, self.dim = {}, [], np.random.default_rng(seed), dim

    def tokenizer(self, texts):
        for text in texts:
            if text not in self.number:
                self.number[text] = len(self.rows)
                self.rows.append(unit(self.rng.normal(size=self.dim)))
        return np.array([[self.number[text]] for text in texts], np.int32).reshape(-1, 1)

    def embed(self, tokens):
        return np.array(self.rows, np.float32)[tokens[:, 0]].reshape(-1, self.dim)

    def of(self, *texts):
        """[n, D] float32."""
        return self.embed(self.tokenizer(texts))


def run(evaluate, config, mesh, texts, image, *, label=None, pair_id=None, captions=None, targets=None, **options):
    """The evaluator on N images in batches of 32, the last one padded. captions: a list of texts of each image."""
    count = len(image)

    def batches():
        for start in range(0, count, BATCH):
            index = np.arange(start, start + BATCH)
            rows = np.minimum(index, count - 1)
            columns = {
                "image": image[rows],
                "index": np.where(index < count, index, -1).astype(np.int32),
                "valid": index < count,
                "label": np.full(BATCH, -1, np.int32) if label is None else np.asarray(label, np.int32)[rows],
                "pair_id": np.full(BATCH, -1, np.int32) if pair_id is None else np.asarray(pair_id, np.int32)[rows],
            }
            if captions is not None:
                columns["text"] = texts.tokenizer([captions[row][0] for row in rows])
            yield jax.device_put(columns, batch_sharding(mesh))

    given = {"class_names": (), "where": lambda index: ("toy.tar", index)} | options
    if captions is not None:
        given["captions"] = lambda index: captions[index]
    if targets is not None:
        given["record"] = lambda index: {"targets": targets[index]}
    found = evaluate(
        config,
        batches=batches,
        embed_images=lambda batch: batch["image"],
        embed_texts=texts.embed,
        tokenizer=texts.tokenizer,
        mesh=mesh,
        **given,
    )
    return with_counts_named(found)


def with_counts_named(found):
    """The results, if is_count knows the names of exactly their whole numbers: reports rely on it."""
    counts = {name for name, value in found.items() if isinstance(value, Integral)}
    assert counts == {name for name in found if is_count(name)}
    return found
