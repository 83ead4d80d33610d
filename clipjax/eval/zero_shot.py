"""Zero-shot classification: an image's class is the one whose prompts' mean embedding is nearest.

Prompt ensembling as in Radford et al. (2103.00020, section 3.1.4).
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import ConfigError, EvaluatorConfig, require
from clipjax.config.fields import runtime
from clipjax.data.labels import are_numbers, first_difference, match_names
from clipjax.data.labels import read_class_names as read_names_file
from clipjax.eval.intervals import wilson_interval
from clipjax.eval.prompts import fill
from clipjax.files import TextFileError
from clipjax.mesh import replicated, to_mesh

PROMPTS_AT_A_TIME = 8192  # bounds host memory: the embeddings of 21,000 classes in 80 prompts are 5 GB


@dataclass(frozen=True)
class ZeroShotConfig(EvaluatorConfig):
    """The options of zero-shot classification."""

    name: str = "zero_shot"
    published_task: ClassVar[str] = "zeroshot_classification"
    published_names: ClassVar[Mapping[str, str]] = {
        "acc1": "top1",
        "acc5": "top5",
        "mean_per_class_recall": "mean_per_class_recall",
    }
    class_names: str = runtime("")  # text file, one name per line; "": the names that come with the source
    rename: bool = runtime(False)  # class_names gives other names to the source's classes, line by line
    templates: tuple[str, ...] = runtime(("{}",))  # prompts; "{}" stands for the class name

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        shares = ("top1", "top5", "mean_per_class", "chance", "top1_low", "top1_high")
        return (*shares, "classes", "examples", "unlabelled", "indistinguishable")

    def names_of_labels(self, class_names: Sequence[str]) -> Sequence[str]:
        """The name of each label, of the file or the source. Raises ConfigError."""
        names, lines = resolve_names(self, class_names)
        return [names[line] for line in lines]

    def prompts(self, class_names: Sequence[str]) -> Sequence[str]:
        """Every class name in every template. Raises ConfigError."""
        return fill(self.templates, resolve_names(self, class_names)[0])


def check(
    config: ZeroShotConfig,
    *,
    class_names: Sequence[str] | None = None,
    labels: Callable[[], tuple[np.ndarray, bool]] | None = None,
) -> None:
    """Refuses templates that could not tell the classes apart, class names that are not the source's, and its labels.

    class_names: the source's; None while it is not open yet. labels: reads ([n] labels, -1: none; whether they are all
    of the source's), where what an evaluation would refuse can be seen before it. Raises ConfigError.
    """
    fill(config.templates, ())
    if class_names is None and not config.class_names:
        return
    _, lines = resolve_names(config, class_names or ())
    if labels is None:
        return
    found, whole = labels()
    data, largest = f"{config.source.path}, split '{config.source.split}'", int(found.max(initial=-1))
    require(
        largest < len(lines),
        f"{data}: a record has the label {largest}, but there are {len(lines)} class names. Expected a name for every "
        f"label, counted from 0, in {_names_of(config)}.",
    )
    require(
        largest >= 0 or not whole,
        f"{data}: no record has a label to classify. Does the source's label_key name the field that has it?",
    )


def evaluate(
    config: ZeroShotConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str],
    mesh: Mesh,
    where: Callable[[int], tuple[str, int]] | None = None,
    **_: object,
) -> dict[str, float]:
    """Accuracy over all class names on every labelled record. All processes call it together.

    A hit needs a score above that of every other class (top-5: of all except at most four), so ties, and scores that
    are not finite, count against the model.

    batches: global arrays {"image", "label" [B] int32 (-1: none), "valid" [B] bool, ...}.
    embed_images: batch -> [B, D] float32; embed_texts: tokens [N, L] -> [N, D] float32; both L2-normalised.
    class_names: the source's names, which its labels index; () where labels are numbers without names.
    where: (index of a record) -> (its file, its position there), for errors.
    Returns top1, top5, mean_per_class (top-1 averaged over the classes that occur), chance (1 / classes),
      top1_low and top1_high (95% Wilson interval), classes, examples, unlabelled, indistinguishable (classes whose
      prompts have the same tokens as another class's, so that they never count as right).
    Raises ConfigError for missing class names, a template without {}, data without labels, or labels beyond
      the names.
    """
    names, lines = resolve_names(config, class_names)
    classes, indistinguishable = class_embeddings(names, config.templates, tokenizer, embed_texts)
    classes = to_mesh(classes, replicated(mesh))
    lines = to_mesh(np.asarray(lines, np.int32), replicated(mesh))
    count = jax.jit(_count, out_shardings=replicated(mesh))
    totals, largest = None, None
    for batch in batches():
        index = batch.get("index", batch["label"])
        *counts, last = count(embed_images(batch), batch["label"], batch["valid"], index, classes, lines)
        totals = counts if totals is None else jax.tree.map(jnp.add, totals, counts)
        largest = last if largest is None else _larger(largest, last)
    hits, top5, seen, unlabelled, beyond = (np.asarray(total, np.int64) for total in totals)
    data = f"{config.source.path}, split '{config.source.split}'"
    if beyond:
        label, record = np.asarray(largest).tolist()
        place = "{} record {}".format(*where(record)) if where else f"record {record}"
        raise ConfigError(
            f"{data}: {beyond} record(s) have a label of {len(lines)} or more, but there are {len(lines)} class names; "
            f"{place} has the label {label}. Expected a name for every label, counted from 0, in {_names_of(config)}."
        )
    examples = int(seen.sum())
    require(
        examples > 0,
        f"{data}: no record has a label to classify. Does the source's label_key name the field that has it?",
    )
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
    """The names to classify among, from the file config.class_names or, without one, the source's. Raises ConfigError.

    Where both are there, see resolve_names.
    """
    return resolve_names(config, class_names)[0]


def resolve_names(config: ZeroShotConfig, own: Sequence[str]) -> tuple[Sequence[str], list[int]]:
    """(names to classify among, the line of each of the source's labels in them).

    own: the source's names; () where labels are numbers without names, which are lines of the file. Names in another
    order are matched by name, and that is logged. With config.rename, the file's lines are other names of the same
    classes. Raises ConfigError where there are no names, and where a name of the source is not exactly one line of the
    file.
    """
    if not config.class_names:
        require(not config.rename, "rename=True needs class_names, the file with other names for the source's classes.")
        require(
            len(own) > 0,
            f"{config.source.path} names no classes; set the evaluator's class_names to a file with one name per line.",
        )
        if are_numbers(own):
            logging.warning("The classes of %s are named by their numbers: '%s' ...", config.source.path, own[0])
        return own, list(range(len(own)))
    names = _read_file(config.class_names)
    if not own:
        return names, list(range(len(names)))
    if config.rename:
        require(
            len(own) == len(names),
            f"class_names='{config.class_names}' has {len(names)} lines and {config.source.path} has {len(own)} "
            "classes; rename=True needs one line for each.",
        )
        return names, list(range(len(own)))
    lines = match_names(own, names)
    require(
        lines is not None,
        f"The class names of {config.source.path} and of class_names='{config.class_names}' differ: "
        f"{first_difference(own, names)}. Labels would mean other classes. Give the file the source's names, or set "
        "rename=True if its lines are other names of the same classes, in the same order.",
    )
    if lines != list(range(len(own))):
        logging.warning(
            "%s has its class names in another order than class_names='%s': labels are matched by name.",
            config.source.path, config.class_names,
        )  # fmt: skip
    return names, lines


def _read_file(path: str) -> Sequence[str]:
    require(
        Path(path).is_file(), f"class_names='{path}' is not a file; expected a text file with one class name per line."
    )
    try:
        names = read_names_file(path)
    except (OSError, TextFileError) as error:
        raise ConfigError(f"class_names='{path}' cannot be read: {error}") from error
    require(len(names) > 0, f"class_names='{path}' is empty; expected one class name per line.")
    return names


def _names_of(config: ZeroShotConfig) -> str:
    return config.class_names or f"the class names of {config.source.path}"


@jax.jit
def _larger(one: jax.Array, other: jax.Array) -> jax.Array:
    """The pair (label, record) with the larger label."""
    return jnp.where(other[0] > one[0], other, one)


def _count(
    embedding: jax.Array, label: jax.Array, valid: jax.Array, index: jax.Array, classes: jax.Array, lines: jax.Array
) -> tuple[jax.Array, ...]:
    """(top-1 hits per class, top-5 hits, examples per class, unlabelled, labels beyond the lines, largest) of a batch.

    lines: [labels] int32, the class of each label. largest: [2], the largest label and the index of its record.
    """
    num_classes = classes.shape[0]
    scores = jnp.matmul(embedding, classes.T, precision="highest")
    counted = valid & (label >= 0) & (label < lines.shape[0])
    target = lines[jnp.where(counted, label, 0)]
    own_label = jnp.where(valid, label, -1)
    last = jnp.argmax(own_label)
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
        jnp.sum(valid & (label >= lines.shape[0])),
        jnp.stack([own_label[last], index[last]]),
    )
