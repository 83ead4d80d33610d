"""Zero-shot classification: an image's class is the one whose prompts' mean embedding is nearest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.config import require
from clipjax.eval.class_names import ClassesConfig, check_classes, check_labels, names_of, resolve_names
from clipjax.eval.class_prompts import class_prompts, embed_classes
from clipjax.eval.classification import Predictions, calibration, shares, tables
from clipjax.eval.embeddings import Where, not_finite_error, record_name
from clipjax.mesh import replicated, to_mesh

BEYOND = 5  # added to the number of classes: the rank of a class whose score is not finite is among no five best


@dataclass(frozen=True)
class ZeroShotConfig(ClassesConfig):
    """The options of zero-shot classification."""

    name: str = "zero_shot"
    published_task: ClassVar[str] = "zeroshot_classification"
    published_names: ClassVar[Mapping[str, str]] = {
        "acc1": "top1",
        "acc5": "top5",
        "mean_per_class_recall": "mean_per_class_recall",
    }

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports; top5 only from five classes on."""
        with_interval = ("top1", "top5", "mean_per_class_recall")
        shown = [f"{name}{bound}" for name in with_interval for bound in ("", "_low", "_high")]
        counts = ("classes", "examples", "unlabelled", "unreadable", "indistinguishable")
        return (*shown, "calibration_error", "chance", *counts)


def check(
    config: ClassesConfig,
    *,
    class_names: Sequence[str] | None = None,
    labels: Callable[[], tuple[np.ndarray, bool]] | None = None,
    templates: Sequence[str] = (),
) -> None:
    """Refuses templates that could not tell the classes apart, class names that are not the source's, and its labels.

    class_names, templates: the source's; None while it is not open yet. labels: reads ([n] labels, -1: none; whether
    they are all of the source's), where what an evaluation would refuse can be seen before it. Raises ConfigError.
    """
    check_classes(config, class_names=class_names, templates=templates)
    if labels is None or (class_names is None and not config.class_names):
        return
    _, lines = resolve_names(config, class_names or ())
    found, whole = labels()
    data, largest = f"{config.source.path}, split '{config.source.split}'", int(found.max(initial=-1))
    require(
        largest < len(lines),
        f"{data}: a record has the label {largest}, but there are {len(lines)} class names. Expected a name for every "
        f"label, counted from 0, in {names_of(config)}.",
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
    where: Where | None = None,
    templates: Sequence[str] = (),
    logit_scale: float | None = None,
    **_: object,
) -> dict[str, Any]:
    """Accuracy over all class names on every labelled record. All processes call it together.

    By the tie rule "against", a hit needs a score above that of every other class (top-5: of all except at most four);
    by "first", of classes with equal scores the one with the lowest index comes first. Scores that are not finite count
    against the model by either, if config.not_finite allows them.

    batches: global arrays {"image", "label" [B] int32 (-1: none), "valid" [B] bool, ...}.
    embed_images: batch -> [B, D] float32; embed_texts: tokens [N, L] -> [N, D] float32; both L2-normalised.
    class_names: the source's names, which its labels index; () where labels are numbers without names.
    where: (index of a record) -> (its file, its position there), for errors.
    templates: the source's own prompt templates, used where the options give none.
    logit_scale: the scale of the cosines in the softmax that gives a confidence, such as the model's learnt one; None:
      no calibration error.
    Returns top1, top5 (from five classes on) and mean_per_class_recall with their 95% intervals (_low, _high),
      calibration_error, chance (1 / classes), classes, examples, unlabelled, unreadable (bad records),
      indistinguishable (classes whose prompts have the same tokens as another class's), and details: see
      clipjax.eval.classification.tables, and the prompts.
    Raises ConfigError for missing class names, a template without {}, data without labels, or labels beyond
      the names, EmbeddingError for an embedding that is not finite.
    """
    names, lines = resolve_names(config, class_names)
    prompts = class_prompts(config, names, templates)
    classes, indistinguishable = embed_classes(names, prompts, tokenizer, embed_texts, config.not_finite)
    found, left_out = _predictions(config, batches, embed_images, classes, lines, mesh, where, logit_scale)
    numbers: dict[str, Any] = shares(found, len(names))
    details: dict[str, Any] = {}
    if logit_scale is not None:
        numbers["calibration_error"], bins = calibration(found)
        details["calibration"] = {"logit_scale": float(logit_scale), "bins": bins}
    counts = {"classes": len(names), "examples": len(found.rank), **left_out}
    numbers |= {"chance": 1.0 / len(names), **counts, "indistinguishable": indistinguishable}
    rules = {"ties": config.ties, "not_finite": config.not_finite}
    return {**numbers, "details": {"prompts": prompts.document(), **rules, **details, **tables(found, names)}}


def _predictions(
    config: ZeroShotConfig,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    classes: np.ndarray,
    lines: Sequence[int],
    mesh: Mesh,
    where: Where | None,
    logit_scale: float | None,
) -> tuple[Predictions, dict[str, int]]:
    """(of every labelled record, how many are "unlabelled" and "unreadable"). Raises as evaluate does."""
    scored = jax.jit(functools.partial(_scored, first=config.ties == "first"), out_shardings=replicated(mesh))
    fixed = (classes, np.asarray(lines, np.int32), np.float32(1.0 if logit_scale is None else logit_scale))
    fixed = jax.tree.map(lambda array: to_mesh(array, replicated(mesh)), fixed)
    parts: list[dict[str, np.ndarray]] = []
    unreadable = 0
    for batch in batches():
        index = batch.get("index", batch["label"])
        rows = jax.tree.map(np.asarray, scored(embed_images(batch), batch["label"], batch["valid"], index, *fixed))
        unreadable += int(np.sum(~rows["valid"] & (rows["index"] >= 0)))
        rows = {name: column[rows["valid"]] for name, column in rows.items()}
        broken = np.flatnonzero(rows["broken"])
        if len(broken) and config.not_finite == "error":
            place = record_name(int(rows["index"][broken[0]]), where)
            raise not_finite_error(f"the image of {config.source.path}, {place}", broken, len(rows["broken"]))
        parts.append(rows)
    data = f"{config.source.path}, split '{config.source.split}'"
    require(bool(parts), f"{data}: no record could be read.")
    columns = {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}
    label = columns["label"]
    check_labels(config, label, columns["index"], len(lines), where)
    labelled = label >= 0
    found = Predictions(*(columns[name][labelled] for name in Predictions._fields))
    return found, {"unlabelled": int(np.sum(~labelled)), "unreadable": unreadable}


def _scored(
    embedding: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    index: jax.Array,
    classes: jax.Array,
    lines: jax.Array,
    logit_scale: jax.Array,
    first: bool,
) -> dict[str, jax.Array]:
    """[B] columns of a batch: those of Predictions, which mean something where there is a class, and label, valid,
    index and broken (embeddings that are not finite).

    lines: [labels] int32, the class of each label. first: of equal scores the one with the lowest index comes first.
    """
    num_classes = classes.shape[0]
    scores = jnp.matmul(embedding, classes.T, precision="highest")
    target = lines[jnp.where((label >= 0) & (label < lines.shape[0]), label, 0)]
    number = jnp.arange(num_classes)
    is_own = number == target[:, None]
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    # Count the lower scores, not the higher ones: NaN is neither, and must count against the model.
    lower = scores < own
    if first:
        lower |= (scores == own) & (number > target[:, None])
    rank = num_classes - jnp.sum(lower & ~is_own, axis=1)
    rank = jnp.where(jnp.isfinite(own[:, 0]), rank, num_classes + BEYOND)
    best_other = jnp.argmax(jnp.where(is_own, -jnp.inf, scores), axis=1)
    return {
        "target": target,
        "predicted": jnp.where(rank == 1, target, best_other),
        "rank": rank,
        "confidence": jnp.max(jax.nn.softmax(logit_scale * scores, axis=1), axis=1),
        "label": label,
        "valid": valid,
        "index": index,
        "broken": ~jnp.all(jnp.isfinite(embedding), axis=1),
    }
