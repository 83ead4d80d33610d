"""How image and text embeddings lie on the sphere: alignment, uniformity, modality gap, effective rank, collapse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import EvaluatorConfig, require
from clipjax.config.fields import runtime
from clipjax.config.ranges import STEPS, Range
from clipjax.eval.features import check_finite
from clipjax.mesh import batch_sharding, batch_shards, replicated, to_host, to_mesh

BLOCK, TILE = 2**14, 2**10  # rows whose moments are taken at a time; rows that are compared with all others at a time
DEAD = 0.01  # a dimension is dead if it varies less than this share of 1 / sqrt(D), a dimension of random directions
SIDES = ("image", "text")


@dataclass(frozen=True)
class EmbeddingHealthConfig(EvaluatorConfig):
    """The options of the measures of how embeddings lie on the sphere."""

    name: str = "embedding_health"
    # uniformity compares all pairs of this many records, drawn at random where there are more
    uniformity_records: int = runtime(16_384, within=Range(2, 2**24))
    seed: int = runtime(0, within=STEPS)  # of that draw

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        each = ("uniformity", "effective_rank", "centred_effective_rank", "dead_dimensions")
        pairs = ("alignment", "matching_cosine", "non_matching_cosine", "modality_gap", "modality_accuracy")
        return (*pairs, *(f"{side}_{name}" for name in each for side in SIDES), "examples", "unreadable")


def evaluate(
    config: EmbeddingHealthConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    mesh: Mesh,
    where: Callable[[int], tuple[str, int]] | None = None,
    **_: object,
) -> dict[str, Any]:
    """Measures of every record's image embedding and that of its first caption. All processes call it together.

    With images x_i and captions y_i, i = 1 ... N, in D dimensions:

    alignment: mean_i |x_i - y_i|^2, and image_uniformity, text_uniformity: log mean_{i<j} exp(-2 |x_i - x_j|^2), of
      Wang & Isola (2005.10242). Smaller is better.
    matching_cosine: mean_i x_i . y_i; non_matching_cosine: the mean of x_i . y_j over records that do not match
      (another pair_id, or another record where there is none). 0 where all records match.
    modality_gap: |mean x - mean y| (Liang et al. 2203.02053), and modality_accuracy: the share of embeddings nearer to
      their own modality's mean than to the other's; 0.5 where the modalities cannot be told apart.
    image_effective_rank, text_effective_rank: exp of the entropy of the singular values of [N, D], divided by their
      sum (Roy & Vetterli 2007), up to D; *_centred_effective_rank: after subtracting the mean.
    image_dead_dimensions, text_dead_dimensions: the share of dimensions that hardly vary (DEAD).

    "details" has `warnings`, which are logged too. Raises ConfigError for embeddings that are not finite, naming the
    first record, and for fewer than two records.
    """
    image, text, pair_id, index, unreadable = _collect(batches, embed_images, embed_texts)
    data = f"{config.source.path}, split '{config.source.split}'"
    require(len(image) > 1, f"{data}: {len(image)} record(s) could be read; the measures need at least two.")
    for side, x in zip(SIDES, (image, text), strict=True):
        check_finite(x, index, data, where, f"{side} embeddings")
    chosen = np.arange(len(image))
    if len(image) > config.uniformity_records:
        rng = np.random.default_rng(config.seed)
        chosen = np.sort(rng.choice(len(image), config.uniformity_records, replace=False))
    sums = {side: moments(x) for side, x in zip(SIDES, (image, text), strict=True)}
    means = {side: total / len(image) for side, (total, _) in sums.items()}
    matching, non_matching = cosines(image, text, pair_id)
    results: dict[str, Any] = {
        "alignment": _mean_of_blocks(lambda x, y: np.square(x - y).sum(1), image, text),
        "matching_cosine": matching,
        "non_matching_cosine": non_matching,
        "modality_gap": float(np.linalg.norm(means["image"] - means["text"])),
        "modality_accuracy": modality_accuracy(image, text, means["image"], means["text"]),
    }
    for side, x in zip(SIDES, (image, text), strict=True):
        products, mean = sums[side][1], means[side]
        covariance = products / len(x) - np.outer(mean, mean)
        spread = np.sqrt(np.maximum(np.diag(covariance), 0))
        results |= {
            f"{side}_uniformity": uniformity(x[chosen], mesh),
            f"{side}_effective_rank": effective_rank(products),
            f"{side}_centred_effective_rank": effective_rank(covariance, rounded=np.trace(products) / len(x)),
            f"{side}_dead_dimensions": float(np.mean(spread < DEAD / np.sqrt(x.shape[1]))),
        }
    warnings = warnings_of(results)
    for warning in warnings:
        logging.warning("%s: %s", data, warning)
    ordered = {metric: results[metric] for metric in config.metrics if metric in results}
    details = {"warnings": warnings, "uniformity_records": len(chosen), "dimensions": image.shape[1]}
    return {**ordered, "examples": len(image), "unreadable": unreadable, "details": details}


def _collect(batches: Callable, embed_images: Callable, embed_texts: Callable) -> tuple[np.ndarray, ...]:
    """(image and text embeddings [N, D] float32, pair_id and index [N], number of bad records) on every process."""
    columns, unreadable = [], 0
    for batch in batches():
        embedding, text, pair_id, valid, index = to_host(
            (embed_images(batch), batch["text"], batch["pair_id"], batch["valid"], batch["index"])
        )
        unreadable += int(np.sum(~valid & (index >= 0)))
        texts = embed_texts(text[valid])
        columns.append((embedding[valid], texts.reshape(-1, embedding.shape[1]), pair_id[valid], index[valid]))
    if not columns:
        return *np.zeros((2, 0, 1), np.float32), *np.zeros((2, 0), np.int32), unreadable
    return *(np.concatenate(column) for column in zip(*columns, strict=True)), unreadable


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the sum of rows [D], the sum of their outer products [D, D]) in float64; x: [N, D]."""
    total, products = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK].astype(np.float64)
        total += block.sum(axis=0)
        products += block.T @ block
    return total, products


def effective_rank(products: np.ndarray, rounded: float = 0.0) -> float:
    """exp(-sum p log p) with p the singular values of X divided by their sum; products: X^T X [D, D]. 0 for X = 0.

    rounded: the scale of what products were the difference of, whose rounding they have.
    """
    # A matrix of rank r has D - r eigenvalues that are 0 to within rounding; their roots would not be.
    values = np.linalg.eigvalsh(products)
    limit = max(values.max(), rounded) * len(values) * np.finfo(np.float64).eps
    singular = np.sqrt(values[values > limit])
    share = singular / singular.sum() if len(singular) else singular
    return float(np.exp(-np.sum(share * np.log(share)))) if len(share) else 0.0


def cosines(image: np.ndarray, text: np.ndarray, pair_id: np.ndarray) -> tuple[float, float]:
    """(mean cosine of each record's own pair, mean over the pairs of records that do not match), without an N x N.

    The sum over all pairs is that of the images times that of the captions; what matches is subtracted, by pair_id.
    """
    own = np.concatenate([
        np.einsum("nd,nd->n", x.astype(np.float64), y.astype(np.float64)) for x, y in _blocks(image, text)
    ])  # fmt: skip
    everything = row_sum(image) @ row_sum(text)
    single = pair_id < 0
    ids, group, sizes = np.unique(pair_id[~single], return_inverse=True, return_counts=True)
    repeated = sizes[group] > 1
    matched = own.sum() - own[~single][repeated].sum()
    pairs = len(own) ** 2 - int(single.sum()) - int(np.square(sizes.astype(np.int64)).sum())
    grouped_image, grouped_text = image[~single][repeated], text[~single][repeated]
    _, group = np.unique(group[repeated], return_inverse=True)
    order = np.argsort(group, kind="stable")
    edges = np.flatnonzero(np.diff(group[order])) + 1
    for members in np.split(order, edges) if len(order) else ():
        matched += row_sum(grouped_image[members]) @ row_sum(grouped_text[members])
    return float(own.mean()), float((everything - matched) / pairs) if pairs else 0.0


def row_sum(x: np.ndarray) -> np.ndarray:
    """The sum of the rows of x [N, D] in float64."""
    return x.sum(axis=0, dtype=np.float64)


def modality_accuracy(image: np.ndarray, text: np.ndarray, image_mean: np.ndarray, text_mean: np.ndarray) -> float:
    """The share of embeddings nearer to their own modality's mean; one that is as near to both counts half."""
    axis = image_mean - text_mean
    middle = axis @ (image_mean + text_mean) / 2
    right = lambda side: 0.5 * (1 + np.sign(side))  # noqa: E731
    return _mean_of_blocks(lambda x, y: (right(x @ axis - middle) + right(middle - y @ axis)) / 2, image, text)


def uniformity(x: np.ndarray, mesh: Mesh) -> float:
    """log of the mean of exp(-2 |x_i - x_j|^2) over i < j; x: [N, D]. All processes call it together.

    Compared in tiles of rows, spread over the mesh, in float64.
    """
    shards = batch_shards(mesh)
    tile, total = -(-min(TILE, len(x)) // shards) * shards, 0.0
    x = x.astype(np.float64)
    with jax.enable_x64(True):
        everything = to_mesh(x, replicated(mesh))
        for start in range(0, len(x), tile):
            block = x[start : start + tile]
            rows = to_mesh(np.pad(block, ((0, tile - len(block)), (0, 0))), batch_sharding(mesh))
            total += to_host(_kernel_sums(rows, everything, np.int32(start)))[: len(block)].sum()
    return float(np.log(total / (len(x) * (len(x) - 1))))


@jax.jit
def _kernel_sums(rows: jax.Array, everything: jax.Array, start: jax.Array) -> jax.Array:
    """[n]: the sum of exp(-2 |row - other|^2) over all others."""
    own = start + jnp.arange(len(rows))
    products = jnp.matmul(rows, everything.T, precision="highest")
    squares = jnp.square(rows).sum(1)[:, None] + jnp.square(everything).sum(1)[None] - 2 * products
    kernel = jnp.exp(-2 * jnp.maximum(squares, 0))
    return jnp.where(own[:, None] == jnp.arange(len(everything)), 0, kernel).sum(1)


def warnings_of(results: dict[str, Any]) -> list[str]:
    """What looks like a collapse, in words."""
    found = []
    for side in SIDES:
        if results[f"{side}_centred_effective_rank"] < 2:
            found.append(f"the {side} embeddings have collapsed to one direction, or to one point")
        if results[f"{side}_dead_dimensions"] > 0:
            share = results[f"{side}_dead_dimensions"]
            found.append(f"{share:.1%} of the dimensions of the {side} embeddings hardly vary")
    if results["non_matching_cosine"] > 0.99:
        found.append("all images and captions have almost the same embedding")
    if results["matching_cosine"] <= results["non_matching_cosine"]:
        found.append("matching pairs are no nearer than others: the model has not learned to match, or the data is off")
    return found


def _blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    for start in range(0, len(arrays[0]), BLOCK):
        yield tuple(array[start : start + BLOCK] for array in arrays)


def _mean_of_blocks(measure: Callable[..., np.ndarray], *arrays: np.ndarray) -> float:
    """The mean of measure(rows of each array) [n] over all rows, in float64."""
    sums = [measure(*(part.astype(np.float64) for part in parts)).sum() for parts in _blocks(*arrays)]
    return float(np.sum(sums) / len(arrays[0]))
