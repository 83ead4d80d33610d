"""The rank of each query's best match in a gallery of any size, in blocks of bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.mesh import batch_sharding, batch_shards, replicated, to_host, to_mesh

MAX_SCORES = 2**26  # similarities that exist at a time, over all devices: 256 MiB
GALLERY_BLOCK = 2**14  # candidates on a device at a time
RESIDENT = 2**28  # bytes; a gallery up to this size stays on the devices instead of being sent for each tile of queries
NOBODY = -1  # the id of padding


def ranks(
    query: np.ndarray,
    candidate: np.ndarray,
    pair_id: np.ndarray,
    mesh: Mesh,
    max_scores: int | None = None,
    candidate_id: np.ndarray | None = None,
    ties: str = "against",
    gallery_block: int | None = None,
) -> np.ndarray:
    """[N] int: the rank of each query's best match; candidates with the query's id match it.

    A rank is 1 + the number of non-matches before the best match: those that do not score below it, or, with ties
    "first", those above it and those with an equal score and a lower index. Non-matches whose score is NaN are before
    every match, and all of them before the match where no match has a score. A query without a match has the rank
    M + 1.

    query: [N, D] float32, pair_id: [N] int. candidate: [M, D], candidate_id: [M]; None: pair_id. Both lie on the host.
    Tiles of queries, spread over the mesh's batch axes, meet blocks of at most gallery_block candidates
    (GALLERY_BLOCK), with at most max_scores similarities (MAX_SCORES, but at least one query per device) at a time.
    Raises ValueError for an empty gallery.
    """
    if not len(candidate):
        raise ValueError("The gallery is empty: there are no candidates to rank.")
    shards = batch_shards(mesh)
    budget = max(1, MAX_SCORES if max_scores is None else max_scores)
    columns = min(len(candidate), GALLERY_BLOCK if gallery_block is None else gallery_block, max(1, budget // shards))
    tile = -(-min(max(1, budget // columns), max(1, len(query))) // shards) * shards
    # Ids of any size and sign become small numbers, none of which is NOBODY.
    candidate_id = pair_id if candidate_id is None else candidate_id
    own, theirs = np.split(np.unique(np.concatenate([pair_id, candidate_id]), return_inverse=True)[1], [len(pair_id)])
    gallery = _Gallery(candidate, theirs.astype(np.int32), columns, mesh)
    best_of, before = _best_match, functools.partial(_before, first=ties == "first")
    rows, found = batch_sharding(mesh), [np.zeros(0, np.int32)]
    for start in range(0, len(query), tile):
        count = min(tile, len(query) - start)
        block = np.pad(query[start : start + count], ((0, tile - count), (0, 0)))
        ids = np.pad(own[start : start + count].astype(np.int32), (0, tile - count), constant_values=NOBODY)
        block, ids = to_mesh(block, rows), to_mesh(ids, rows)
        best = to_mesh(np.full(tile, -np.inf, np.float32), rows), to_mesh(np.zeros(tile, np.int32), rows)
        for part in gallery.blocks():
            best = best_of(block, ids, *part, *best)
        rank = to_mesh(np.ones(tile, np.int32), rows)
        for part in gallery.blocks():
            rank = before(block, ids, *part, *best, rank)
        found.append(to_host(rank)[:count])
    return np.concatenate(found)


class _Gallery:
    """Candidates in blocks (embeddings [G, D], ids [G], index of the first one), replicated on the devices."""

    def __init__(self, candidate: np.ndarray, ids: np.ndarray, columns: int, mesh: Mesh):
        self.candidate, self.ids, self.columns, self.everywhere = candidate, ids, columns, replicated(mesh)
        self.kept = list(self._sent()) if candidate.nbytes <= RESIDENT else None

    def blocks(self) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        return iter(self.kept) if self.kept is not None else self._sent()

    def _sent(self) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        for start in range(0, len(self.candidate), self.columns):
            rows = self.candidate[start : start + self.columns]
            pad = self.columns - len(rows)
            ids = np.pad(self.ids[start : start + self.columns], (0, pad), constant_values=NOBODY)
            block = np.pad(rows, ((0, pad), (0, 0)))
            yield tuple(to_mesh(array, self.everywhere) for array in (block, ids, np.asarray(start, np.int32)))


def _scores(query: jax.Array, candidate: jax.Array) -> jax.Array:
    return jnp.matmul(query, candidate.T, precision="highest")


@jax.jit
def _best_match(
    query: jax.Array,
    ids: jax.Array,
    candidate: jax.Array,
    candidate_ids: jax.Array,
    start: jax.Array,
    best: jax.Array,
    place: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(the best score of a match up to this block, the lowest index that has it), [T] each."""
    scores = _scores(query, candidate)
    scores = jnp.where((ids[:, None] == candidate_ids[None, :]) & ~jnp.isnan(scores), scores, -jnp.inf)
    here = jnp.max(scores, axis=1)
    return jnp.maximum(best, here), jnp.where(here > best, start + jnp.argmax(scores, axis=1), place)


@functools.partial(jax.jit, static_argnames="first")
def _before(
    query: jax.Array,
    ids: jax.Array,
    candidate: jax.Array,
    candidate_ids: jax.Array,
    start: jax.Array,
    best: jax.Array,
    place: jax.Array,
    rank: jax.Array,
    first: bool,
) -> jax.Array:
    """rank + the number of the block's non-matches before the best match, [T]."""
    scores = _scores(query, candidate)
    # Not "scores >= best": NaN is neither lower nor higher, and must count against the model.
    after = scores < best[:, None]
    if first:
        after |= (scores == best[:, None]) & (start + jnp.arange(len(candidate)) > place[:, None])
    nobody = candidate_ids[None, :] == NOBODY
    match = ids[:, None] == candidate_ids[None, :]
    return rank + jnp.sum(~(after | match | nobody), axis=1)
