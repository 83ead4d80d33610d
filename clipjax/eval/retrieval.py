"""Image -> text and text -> image retrieval: recall at 1, 5 and 10, and the median rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.config import EvaluatorConfig, require
from clipjax.mesh import BATCH_AXES, to_host

TILE = 1024


def evaluate(
    config: EvaluatorConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
    **_: object,
) -> dict[str, float]:
    """Every record's image against every record's (first) caption; collective over processes.

    Records with the same pair_id are each other's matches (several images of one caption, or repeats); -1
    matches itself only. A rank is 1 + the number of non-matches that score at least as high as the best match:
    ties count against the model. Returns image_to_text_r1, _r5, _r10, _median_rank, the same for
    text_to_image, and examples.
    """
    images, texts, pair_ids = [], [], []
    for batch in batches():
        valid = to_host(batch["valid"])
        images.append(to_host(embed_images(batch))[valid])
        texts.append(embed_texts(to_host(batch["text"])[valid]))
        pair_ids.append(to_host(batch["pair_id"])[valid])
    image, text, pair_id = (np.concatenate(part) for part in (images, texts, pair_ids))
    require(len(image) > 0, f"{config.source.path}, split '{config.source.split}': no record could be read.")
    # A record without a pair_id gets one of its own, below all that are given.
    pair_id = np.where(pair_id < 0, -2 - np.arange(len(pair_id)), pair_id)
    metrics: dict[str, float] = {}
    for name, query, candidate in (("image_to_text", image, text), ("text_to_image", text, image)):
        rank = ranks(query, candidate, pair_id, mesh)
        metrics |= {f"{name}_r{k}": float(np.mean(rank <= k)) for k in (1, 5, 10)}
        metrics[f"{name}_median_rank"] = float(np.median(rank))
    return {**metrics, "examples": len(image)}


def ranks(query: np.ndarray, candidate: np.ndarray, pair_id: np.ndarray, mesh: Mesh) -> np.ndarray:
    """[N] int: rank of each query's best match among candidates; row i of both has pair_id[i].

    query, candidate: [N, D] float32. The queries of a tile are spread over the mesh's batch axes; nothing
    larger than TILE x N exists.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    tile = -(-min(TILE, len(query)) // shards) * shards
    rows = NamedSharding(mesh, P(BATCH_AXES))
    put = lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])  # noqa: E731
    everywhere = NamedSharding(mesh, P())
    candidate, all_ids = put(candidate, everywhere), put(pair_id, everywhere)
    found = []
    for start in range(0, len(query), tile):
        stop = min(start + tile, len(query))
        pad = tile - (stop - start)
        block = np.pad(query[start:stop], ((0, pad), (0, 0)))
        ids = np.pad(pair_id[start:stop], (0, pad), constant_values=-1)
        rank = _rank_tile(put(block, rows), put(ids, rows), candidate, all_ids)
        found.append(to_host(rank)[: stop - start])
    return np.concatenate(found)


@jax.jit
def _rank_tile(query: jax.Array, ids: jax.Array, candidate: jax.Array, all_ids: jax.Array) -> jax.Array:
    scores = jnp.matmul(query, candidate.T, precision="highest")
    match = ids[:, None] == all_ids[None, :]
    best = jnp.max(jnp.where(match, scores, -jnp.inf), axis=1, keepdims=True)
    return 1 + jnp.sum((scores >= best) & ~match, axis=1)
