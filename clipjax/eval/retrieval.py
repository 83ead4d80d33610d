"""Image -> text and text -> image retrieval: recall at 1, 5 and 10, and the median rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from clipjax.config import EvaluatorConfig, require
from clipjax.mesh import batch_sharding, replicated, to_host

MAX_SCORES = 2**26  # compared at a time, over all devices: 256 MiB


def evaluate(
    config: EvaluatorConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
    tokenizer: Callable[[Sequence[str]], np.ndarray] | None = None,
    captions: Callable[[int], Sequence[str]] | None = None,
    **_: object,
) -> dict[str, float]:
    """Every record's image against every record's (first) caption; collective over processes.

    captions: index of a record -> all its captions, where all take part: each is a query of its own for images, and
    an image's match is the best of its captions. Tokenized by `tokenizer`.

    Records with the same pair_id are each other's matches (several images of one caption, or repeats); -1
    matches itself only. A rank is 1 + the number of non-matches that do not score below the best match: ties,
    and scores that are not finite, count against the model. Returns image_to_text_r1, _r5, _r10, _median_rank,
    the same for text_to_image, examples and, with captions, how many there are. Raises ConfigError when no record
    could be read.
    """
    images, texts, counts, pair_ids = [], [], [], []
    for batch in batches():
        embedding, text, pair_id, valid, *index = to_host(
            (embed_images(batch), batch["text"], batch["pair_id"], batch["valid"])
            + ((batch["index"],) if captions else ())
        )
        images.append(embedding[valid])
        pair_ids.append(pair_id[valid])
        if captions:
            found = [captions(int(i)) for i in index[0][valid]]
            counts += [len(own) for own in found]
            text = tokenizer([caption for own in found for caption in own])
        else:
            counts += [1] * len(images[-1])
            text = text[valid]
        texts.append(embed_texts(text))
    image, text, pair_id = (np.concatenate(part) for part in (images, texts, pair_ids))
    require(len(image) > 0, f"{config.source.path}, split '{config.source.split}': no record could be read.")
    # A record without a pair_id gets one of its own, below all that are given.
    image_id = np.where(pair_id < 0, -2 - np.arange(len(pair_id)), pair_id).astype(np.int32)
    text_id = np.repeat(image_id, counts)
    metrics: dict[str, float] = {}
    for name, query, query_id, candidate, candidate_id in (
        ("image_to_text", image, image_id, text, text_id),
        ("text_to_image", text, text_id, image, image_id),
    ):
        rank = ranks(query, candidate, query_id, mesh, candidate_id=candidate_id)
        metrics |= {f"{name}_r{k}": float(np.mean(rank <= k)) for k in (1, 5, 10)}
        metrics[f"{name}_median_rank"] = float(np.median(rank))
    return {**metrics, "examples": len(image), **({"captions": len(text)} if captions else {})}


def ranks(
    query: np.ndarray,
    candidate: np.ndarray,
    pair_id: np.ndarray,
    mesh: Mesh,
    max_scores: int = MAX_SCORES,
    candidate_id: np.ndarray | None = None,
) -> np.ndarray:
    """[N] int: rank of each query's best match among candidates, which have the same id.

    query: [N, D] float32, pair_id: [N] int32; candidate: [M, D], candidate_id: [M], None for pair_id. The queries of a
    tile are spread over the mesh's batch axes; no more than max_scores similarities (or one query a device) exist at a
    time.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    tile = -(-min(max(1, max_scores // len(candidate)), len(query)) // shards) * shards
    rows, everywhere = batch_sharding(mesh), replicated(mesh)
    all_ids = _put(pair_id if candidate_id is None else candidate_id, everywhere)
    candidate = _put(candidate, everywhere)
    found = []
    for start in range(0, len(query), tile):
        stop = min(start + tile, len(query))
        pad = tile - (stop - start)
        block = np.pad(query[start:stop], ((0, pad), (0, 0)))
        ids = np.pad(pair_id[start:stop], (0, pad), constant_values=-1)
        rank = _rank_tile(_put(block, rows), _put(ids, rows), candidate, all_ids)
        found.append(to_host(rank)[: stop - start])
    return np.concatenate(found)


def _put(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


@jax.jit
def _rank_tile(query: jax.Array, ids: jax.Array, candidate: jax.Array, all_ids: jax.Array) -> jax.Array:
    scores = jnp.matmul(query, candidate.T, precision="highest")
    match = ids[:, None] == all_ids[None, :]
    best = jnp.max(jnp.where(match, scores, -jnp.inf), axis=1, keepdims=True)
    # Not "scores >= best": a score that is not a number is neither lower nor higher.
    return 1 + jnp.sum(~((scores < best) | match), axis=1)
