"""Image -> text and text -> image retrieval: recall at 1, 5 and 10, and the median rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.config import EvaluatorConfig, require
from clipjax.config.fields import runtime
from clipjax.mesh import batch_sharding, replicated, to_host, to_mesh

RANKS = ("r1", "r5", "r10", "median_rank")
MAX_SCORES = 2**26  # similarities that exist at a time, over all devices: 256 MiB


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

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        both = [f"{way}_{name}" for way in ("image_to_text", "text_to_image") for name in RANKS]
        return (*both, "examples", *(("captions",) if self.all_captions else ()))


def evaluate(
    config: RetrievalConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
    tokenizer: Callable[[Sequence[str]], np.ndarray] | None = None,
    captions: Callable[[int], Sequence[str]] | None = None,
    **_: object,
) -> dict[str, float]:
    """Recalls of every record's image against every record's caption, both ways. All processes call it together.

    By default only a record's first caption takes part. With config.all_captions, `captions` gives all captions of a
    record by its index: each is a query of its own, and an image's match is the best of its captions.

    Records with the same pair_id match each other (several images of one caption, or repeats); one with -1 matches
    only itself. A rank is 1 + the number of non-matches that do not score below the best match, so ties, and scores
    that are not finite, count against the model. Returns image_to_text_r1, _r5, _r10, _median_rank, the same for
    text_to_image, examples and, with all_captions, captions. Raises ConfigError when no record could be read.
    """
    all_captions = captions if config.all_captions else None
    images, texts, counts, pair_ids = [], [], [], []
    for batch in batches():
        embedding, text, pair_id, valid, *index = to_host(
            (embed_images(batch), batch["text"], batch["pair_id"], batch["valid"])
            + ((batch["index"],) if all_captions else ())
        )
        images.append(embedding[valid])
        pair_ids.append(pair_id[valid])
        if all_captions:
            of_records = [all_captions(int(i)) for i in index[0][valid]]
            counts += [len(own) for own in of_records]
            text = tokenizer([caption for own in of_records for caption in own])
        else:
            counts += [1] * len(images[-1])
            text = text[valid]
        texts.append(embed_texts(text))
    image, text, pair_id = (np.concatenate(part) for part in (images, texts, pair_ids))
    require(len(image) > 0, f"{config.source.path}, split '{config.source.split}': no record could be read.")
    # A record without a pair_id gets one of its own, smaller than any that is given.
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
    return {**metrics, "examples": len(image), **({"captions": len(text)} if all_captions else {})}


def ranks(
    query: np.ndarray,
    candidate: np.ndarray,
    pair_id: np.ndarray,
    mesh: Mesh,
    max_scores: int = MAX_SCORES,
    candidate_id: np.ndarray | None = None,
) -> np.ndarray:
    """[N] int: the rank of each query's best match; candidates with the query's id match it.

    query: [N, D] float32, pair_id: [N] int32. candidate: [M, D], candidate_id: [M]; None: pair_id. Queries are
    compared in tiles, spread over the mesh's batch axes, with at most max_scores similarities (but at least one query
    per device) at a time.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    tile = -(-min(max(1, max_scores // len(candidate)), len(query)) // shards) * shards
    rows, everywhere = batch_sharding(mesh), replicated(mesh)
    all_ids = to_mesh(pair_id if candidate_id is None else candidate_id, everywhere)
    candidate = to_mesh(candidate, everywhere)
    tiles = []
    for start in range(0, len(query), tile):
        stop = min(start + tile, len(query))
        pad = tile - (stop - start)
        block = np.pad(query[start:stop], ((0, pad), (0, 0)))
        ids = np.pad(pair_id[start:stop], (0, pad), constant_values=-1)
        rank = _rank_tile(to_mesh(block, rows), to_mesh(ids, rows), candidate, all_ids)
        tiles.append(to_host(rank)[: stop - start])
    return np.concatenate(tiles)


@jax.jit
def _rank_tile(query: jax.Array, ids: jax.Array, candidate: jax.Array, all_ids: jax.Array) -> jax.Array:
    scores = jnp.matmul(query, candidate.T, precision="highest")
    match = ids[:, None] == all_ids[None, :]
    best = jnp.max(jnp.where(match, scores, -jnp.inf), axis=1, keepdims=True)
    # Not "scores >= best": NaN is neither lower nor higher, and must count against the model.
    return 1 + jnp.sum(~((scores < best) | match), axis=1)
