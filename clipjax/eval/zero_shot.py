"""Zero-shot classification: an image's class is the one whose prompts' mean embedding is nearest.

Prompt ensembling as in Radford et al. (2103.00020, section 3.1.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.config import EvaluatorConfig, require
from clipjax.mesh import replicated


def evaluate(
    config: EvaluatorConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str],
    mesh: Mesh,
) -> dict[str, float]:
    """Accuracy over all class names on every labelled record; collective over processes.

    batches: global arrays {"image", "label" [B] int32 (-1: none), "valid" [B] bool, ...}.
    embed_images: batch -> [B, D] float32; embed_texts: tokens [N, L] -> [N, D] float32; both L2-normalised.
    Returns top1, top5, mean_per_class (top-1 averaged over the classes seen), chance (1 / classes),
      top1_low and top1_high (95% Wilson interval), classes, examples, unlabelled.
    Raises ConfigError for missing class names, a template without {} or data without labels.
    """
    names = read_class_names(config, class_names)
    classes = class_embeddings(names, config.templates, tokenizer, embed_texts)
    count = jax.jit(_count, static_argnums=(4,), out_shardings=replicated(mesh))
    totals = None
    for batch in batches():
        found = count(embed_images(batch), batch["label"], batch["valid"], classes, len(names))
        totals = found if totals is None else jax.tree.map(jnp.add, totals, found)
    hits, top5, seen, unlabelled = (np.asarray(total, np.int64) for total in totals)
    examples = int(seen.sum())
    require(examples > 0, f"{config.source.path}, split '{config.source.split}': no record has a label to classify.")
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
    }


def class_embeddings(
    names: Sequence[str],
    templates: Sequence[str],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    embed_texts: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """[len(names), D] float32: the normalised mean over templates of the normalised prompt embeddings."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    embedding = embed_texts(tokenizer(prompts)).reshape(len(names), len(templates), -1).mean(axis=1)
    return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)


def read_class_names(config: EvaluatorConfig, class_names: Sequence[str]) -> Sequence[str]:
    """The names labels index, from config.class_names (a file) or the source. Raises ConfigError."""
    require(config.templates, "An evaluator's templates are empty; use ('{}',) for the bare class name.")
    for template in config.templates:
        require("{}" in template, f"Template '{template}' has no {{}} for the class name.")
    if config.class_names:
        path = Path(config.class_names)
        require(path.is_file(), f"class_names='{path}' is not a file; expected a text file with a class name a line.")
        class_names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    require(
        len(class_names) > 0,
        f"{config.source.path} names no classes in its manifest; set the evaluator's class_names to a file of names.",
    )
    return class_names


def wilson_interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927), right also near 0 and 1."""
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _count(embedding: jax.Array, label: jax.Array, valid: jax.Array, classes: Any, num_classes: int):
    """(top-1 hits per class, top-5 hits, examples per class, unlabelled). Ties count against the model."""
    scores = jnp.matmul(embedding, classes.T, precision="highest")
    counted = valid & (label >= 0)
    target = jnp.where(counted, label, 0)
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    better = jnp.sum(scores >= own, axis=1) - 1
    one_hot = jax.nn.one_hot(target, num_classes, dtype=jnp.int32) * counted[:, None]
    hits = jnp.sum(one_hot * (better == 0)[:, None], axis=0)
    return hits, jnp.sum(counted & (better < 5)), jnp.sum(one_hot, axis=0), jnp.sum(valid & (label < 0))
