"""Zero-shot classification: an image's class is the one whose prompts' mean embedding is nearest.

Prompt ensembling as in Radford et al. (2103.00020, section 3.1.4).
"""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import EvaluatorConfig, require
from clipjax.config.fields import runtime
from clipjax.eval.prompts import fill
from clipjax.mesh import replicated, to_mesh

PROMPTS_AT_A_TIME = 8192  # bounds host memory: the embeddings of 21,000 classes in 80 prompts are 5 GB


@dataclass(frozen=True)
class ZeroShotConfig(EvaluatorConfig):
    """The options of zero-shot classification."""

    name: str = "zero_shot"
    class_names: str = runtime("")  # text file, one name per line; "": the names in the source's manifest
    templates: tuple[str, ...] = runtime(("{}",))  # prompts; "{}" stands for the class name


def check(config: ZeroShotConfig) -> None:
    """Refuses templates that could not tell the classes apart. Raises ConfigError."""
    fill(config.templates, ())


def evaluate(
    config: ZeroShotConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str],
    mesh: Mesh,
    **_: object,
) -> dict[str, float]:
    """Accuracy over all class names on every labelled record. All processes call it together.

    A hit needs a score above that of every other class (top-5: of all except at most four), so ties, and scores that
    are not finite, count against the model.

    batches: global arrays {"image", "label" [B] int32 (-1: none), "valid" [B] bool, ...}.
    embed_images: batch -> [B, D] float32; embed_texts: tokens [N, L] -> [N, D] float32; both L2-normalised.
    Returns top1, top5, mean_per_class (top-1 averaged over the classes that occur), chance (1 / classes),
      top1_low and top1_high (95% Wilson interval), classes, examples, unlabelled, indistinguishable (classes whose
      prompts have the same tokens as another class's, so that they never count as right).
    Raises ConfigError for missing class names, a template without {}, data without labels, or labels beyond
      the names.
    """
    names = read_class_names(config, class_names)
    classes, indistinguishable = class_embeddings(names, config.templates, tokenizer, embed_texts)
    classes = to_mesh(classes, replicated(mesh))
    count = jax.jit(_count, out_shardings=replicated(mesh))
    totals = None
    for batch in batches():
        counts = count(embed_images(batch), batch["label"], batch["valid"], classes)
        totals = counts if totals is None else jax.tree.map(jnp.add, totals, counts)
    hits, top5, seen, unlabelled, beyond = (np.asarray(total, np.int64) for total in totals)
    where = f"{config.source.path}, split '{config.source.split}'"
    require(
        beyond == 0,
        f"{where}: {beyond} record(s) have a label of {len(names)} or more, but there are {len(names)} class names. "
        f"Expected a name for every label, counted from 0, in {config.class_names or 'the manifest'}.",
    )
    examples = int(seen.sum())
    require(examples > 0, f"{where}: no record has a label to classify.")
    top1 = hits.sum() / examples
    low, high = wilson_interval(int(hits.sum()), examples)
    return {
        "top1": float(top1),
        "top5": float(top5 / examples),
        "mean_per_class": float(np.mean(hits[seen > 0] / seen[seen > 0])),
        "chance": 1.0 / len(names),
        "top1_low": low,
        "top1_high": high,
        "classes": len(names),
        "examples": examples,
        "unlabelled": int(unlabelled),
        "indistinguishable": indistinguishable,
    }


def class_embeddings(
    names: Sequence[str],
    templates: Sequence[str],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    embed_texts: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, int]:
    """The embeddings [C, D] float32 of C names, and the number of indistinguishable classes.

    A class's embedding is the normalised mean over templates of the normalised prompt embeddings. Classes whose
    prompts all have the same tokens (equal names, names cut at the context length, words the tokenizer does not know)
    have equal embeddings; they are logged and counted.
    """
    step = max(1, PROMPTS_AT_A_TIME // max(1, len(templates)))
    means, hashes = [], []
    for start in range(0, len(names), step):
        block = names[start : start + step]
        tokens = tokenizer(fill(templates, block))
        means.append(embed_texts(tokens).reshape(len(block), len(templates), -1).mean(axis=1))
        hashes += [hashlib.sha256(row.tobytes()).digest() for row in tokens.reshape(len(block), -1)]
    embedding = np.concatenate(means)
    repeats = collections.Counter(hashes)
    alike = [name for name, key in zip(names, hashes, strict=True) if repeats[key] > 1]
    if alike:
        logging.warning(
            "%d of %d classes have the same tokens in all prompts as another class, and will never be right: %s",
            len(alike), len(names), ", ".join(f"'{name}'" for name in alike[:10]),
        )  # fmt: skip
    return embedding / np.linalg.norm(embedding, axis=1, keepdims=True), len(alike)


def read_class_names(config: ZeroShotConfig, class_names: Sequence[str]) -> Sequence[str]:
    """The names that labels index, from the file config.class_names or from the source. Raises ConfigError."""
    if config.class_names:
        path = Path(config.class_names)
        require(
            path.is_file(), f"class_names='{path}' is not a file; expected a text file with one class name per line."
        )
        class_names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        require(len(class_names) > 0, f"class_names='{path}' is empty; expected one class name per line.")
    require(
        len(class_names) > 0,
        f"{config.source.path} names no classes in its manifest; set the evaluator's class_names to a file of names.",
    )
    return class_names


def wilson_interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95% confidence interval of the share hits / total (Wilson 1927), which also holds near 0 and 1."""
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _count(embedding: jax.Array, label: jax.Array, valid: jax.Array, classes: jax.Array) -> tuple[jax.Array, ...]:
    """(top-1 hits per class, top-5 hits, examples per class, unlabelled, labels beyond the classes) of one batch."""
    num_classes = classes.shape[0]
    scores = jnp.matmul(embedding, classes.T, precision="highest")
    counted = valid & (label >= 0) & (label < num_classes)
    target = jnp.where(counted, label, 0)
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    # Count the lower scores, not the higher ones: NaN is neither, and must count against the model.
    not_lower = num_classes - 1 - jnp.sum(scores < own, axis=1)
    ranked = counted & jnp.isfinite(own[:, 0])
    per_class = jnp.zeros(num_classes, jnp.int32)
    return (
        per_class.at[target].add(ranked & (not_lower == 0)),
        jnp.sum(ranked & (not_lower < 5)),
        per_class.at[target].add(counted),
        jnp.sum(valid & (label < 0)),
        jnp.sum(valid & (label >= num_classes)),
    )
