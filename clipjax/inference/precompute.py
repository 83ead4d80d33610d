"""Embeds every record of a source once, each process its own share, for clipjax.data.embeddings to write."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipjax.config import ExperimentConfig
from clipjax.data.embeddings import Row, shares
from clipjax.inference.embed import global_batches, make_embed
from clipjax.mesh import own_rows
from clipjax.models.pixels import image_of

TOKENS_AT_A_TIME = 256  # tokens are padded to a multiple of this, so that few shapes are compiled


def embed_source(
    model: ExperimentConfig,
    variables: dict[str, Any],
    config: ExperimentConfig,
    mesh: jax.sharding.Mesh,
    tokenizer: Callable[[list[str]], np.ndarray],
    source: Any,
    *,
    texts: bool,
) -> Iterator[Row | None]:
    """The rows of this process's share of `source`, in order. All processes iterate together.

    model, variables: what embeds. config: whose pixels the images become; they are normalised as `model` says.
    texts: also embed every caption.
    """
    embed_images, embed_texts = make_embed(model, mesh)
    return embedded_rows(
        source,
        global_batches(config, mesh, tokenizer, source, shares=shares(len(source), jax.process_count())),
        lambda batch: embed_images(variables, image_of(batch)),
        (lambda own: embed_own(lambda tokens: embed_texts(variables, tokens), tokenizer(own))) if texts else None,
    )


def embedded_rows(
    source: Any, batches: Iterator[dict[str, jax.Array]], embed_images: Callable, embed_texts: Callable | None
) -> Iterator[Row | None]:
    """The rows of the records in `batches`, in order.

    Calls embed_images and embed_texts once for every batch, even one without usable records, because all processes must
    call them together.
    """
    for batch in batches:
        images, index, valid = own_rows(embed_images(batch)), own_rows(batch["index"]), own_rows(batch["valid"])
        records = [source[int(i)] if ok else None for i, ok in zip(index, valid, strict=True)]
        texts = iter(())
        if embed_texts:
            captions = [text for record in records if record for text in record["texts"]]
            texts = iter(embed_texts(captions))
        for i, image, record in zip(index, images, records, strict=True):
            if record:
                own = np.stack([next(texts) for _ in record["texts"]]) if embed_texts else None
                yield Row(record["key"], image, own, record["texts"])
            elif i >= 0:
                yield None


def embed_own(embed_texts: Callable[[np.ndarray], np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Embeddings [n, D] of this process's own tokens [n, L]; n may differ between processes, which call it together.

    embed_texts: embeds tokens that are the same on every process.
    """
    if jax.process_count() == 1:
        return embed_texts(tokens)
    sizes = multihost_utils.process_allgather(np.int32(len(tokens)))
    rows = (int(sizes.max()) // TOKENS_AT_A_TIME + 1) * TOKENS_AT_A_TIME
    padded = np.zeros((rows, tokens.shape[1]), np.int32)
    padded[: len(tokens)] = tokens
    parts = multihost_utils.process_allgather(padded)
    embeddings = embed_texts(np.concatenate([part[:size] for part, size in zip(parts, sizes, strict=True)]))
    start = int(sizes[: jax.process_index()].sum())
    return embeddings[start : start + len(tokens)]


def counted(rows: Iterator[Row], seen: collections.Counter) -> Iterator[Row]:
    """The same rows, counted in `seen` as "read" and "bad"."""
    for row in rows:
        seen["read"] += 1
        seen["bad"] += row is None
        yield row
