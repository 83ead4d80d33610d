"""Zero-shot classification told by groups: the worst group's accuracy, and F1 averaged over classes.

The groups come from a number beside each label, such as the region or the income where a picture was taken (WILDS,
Koh et al., 2012.07421; GeoDE; Dollar Street). A prediction is one class, so of equal scores the lowest index wins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.config import ConfigError, require
from clipjax.config.fields import runtime
from clipjax.config.ranges import COUNT, POSITION_OR_NONE
from clipjax.eval import zero_shot
from clipjax.eval.class_names import Ties, check_labels, resolve_names
from clipjax.eval.class_prompts import class_prompts, embed_classes
from clipjax.eval.embeddings import Where, not_finite_error, record_name
from clipjax.eval.intervals import wilson_interval
from clipjax.eval.scores import mean_per_class_recall
from clipjax.eval.zero_shot import ZeroShotConfig
from clipjax.mesh import replicated, to_host, to_mesh

ACCURACIES = (1, 5)


@dataclass(frozen=True)
class GroupedConfig(ZeroShotConfig):
    """The options of classification by groups."""

    name: str = "grouped"
    ties: Ties = runtime("first")
    # the number of a record's metadata that is its group, counted from 0; -1: no groups
    group: int = runtime(-1, within=POSITION_OR_NONE)
    top: int = runtime(1, within=COUNT)  # an image of a group is right if its class is among this many nearest
    worst_as: str = runtime("acc_wg")  # the worst group's accuracy in published result files
    published_names: ClassVar[Mapping[str, str]] = {
        "acc1": "top1",
        "acc5": "top5",
        "mean_per_class_recall": "mean_per_class_recall",
        "F1-macro_all": "f1_macro",
    }

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports."""
        shares = ("top1", "top1_low", "top1_high", "top5", "mean_per_class_recall", "f1_macro", "classes", "examples")
        return (*shares, *(("worst_group", "worst_group_low", "worst_group_high", "groups") if self.group >= 0 else ()))

    def published_metrics(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """CLIP_benchmark's names, and those of DataComp's group metrics."""
        worst = {self.worst_as: result["worst_group"]} if self.group >= 0 else {}
        return super().published_metrics(result) | worst


def check(
    config: GroupedConfig,
    *,
    class_names: Sequence[str] | None = None,
    labels: Callable[[], tuple[np.ndarray, bool]] | None = None,
    templates: Sequence[str] = (),
) -> None:
    """Refuses another tie rule, and what zero_shot.check refuses. Raises ConfigError."""
    require(config.ties == "first", f"ties='{config.ties}': a prediction is one class; set ties='first'.")
    zero_shot.check(config, class_names=class_names, labels=labels, templates=templates)


def evaluate(
    config: GroupedConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str],
    record: Callable[[int], dict[str, Any]],
    mesh: Mesh,
    where: Where | None = None,
    templates: Sequence[str] = (),
    **_: object,
) -> dict[str, Any]:
    """Accuracies and F1 of the class with the largest score. All processes call it together.

    record: (index) -> the source's record, whose "metadata" is an array of numbers; read only with config.group.
    templates: the source's own, used where the options give none. Records without a label are left out.
    Returns top1 with its 95% interval, top5 (from five classes on), mean_per_class_recall and f1_macro (over the
      classes that occur), classes, examples; with config.group also worst_group with its interval, groups, and details:
      {"groups": {group: {"accuracy", "examples"}}}.
    Raises ConfigError for missing class names, labels or metadata, and labels beyond the names; EmbeddingError for an
      embedding that is not finite.
    """
    names, lines = resolve_names(config, class_names)
    prompts = class_prompts(config, names, templates)
    classes, _ = embed_classes(names, prompts, tokenizer, embed_texts, config.not_finite)
    nearest = functools.partial(_nearest, count=min(len(names), max(*ACCURACIES, config.top)))
    nearest = jax.jit(nearest, out_shardings=replicated(mesh))
    classes = to_mesh(np.asarray(classes, np.float32), replicated(mesh))
    data = f"{config.source.path}, split '{config.source.split}'"
    parts = []
    for batch in batches():
        found = nearest(embed_images(batch), classes)
        ranked, label, index, valid = to_host((found, batch["label"], batch["index"], batch["valid"]))
        broken = np.flatnonzero(ranked[valid, 0] < 0)
        if len(broken) and config.not_finite == "error":
            place = record_name(int(index[valid][broken[0]]), where)
            raise not_finite_error(f"the image of {config.source.path}, {place}", broken, int(valid.sum()))
        parts.append((ranked, label, index, valid))
    ranked, label, index, valid = (np.concatenate(column) for column in zip(*parts, strict=True))
    require(bool(valid.any()), f"{data}: no record could be read.")
    check_labels(config, label[valid], index[valid], len(lines), where)
    counted = valid & (label >= 0)
    target, ranked = np.asarray(lines)[label[counted]], ranked[counted]
    result = scores(ranked, target, len(names))
    if config.group >= 0:
        groups = [_group(record(int(at)), config.group, data) for at in index[counted]]
        result |= by_group((ranked[:, : config.top] == target[:, None]).any(axis=1), np.asarray(groups))
    return result


def scores(ranked: np.ndarray, target: np.ndarray, classes: int) -> dict[str, Any]:
    """The numbers over all examples. ranked: [N, k] the nearest classes, -1: no answer; target: [N] the right one."""
    hit, total = ranked[:, 0] == target, len(target)
    f1 = []
    for own in np.unique(target):
        is_own, said = target == own, ranked[:, 0] == own
        f1.append(2 * np.sum(is_own & said) / (is_own.sum() + said.sum()))
    low, high = wilson_interval(int(hit.sum()), total)
    top5 = {"top5": float((ranked[:, :5] == target[:, None]).any(axis=1).mean())} if classes >= 5 else {}
    return {
        "top1": float(hit.mean()),
        "top1_low": low,
        "top1_high": high,
        **top5,
        "mean_per_class_recall": mean_per_class_recall(hit, target),
        "f1_macro": float(np.mean(f1)),
        "classes": classes,
        "examples": total,
    }


def by_group(hit: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """The worst group's share of hits; hit: [N] bool, group: [N] int."""
    table = {}
    for own in np.unique(group):
        hits = hit[group == own]
        table[int(own)] = (int(hits.sum()), len(hits))
    hits, examples = min(table.values(), key=lambda row: row[0] / row[1])
    low, high = wilson_interval(hits, examples)
    details = {str(own): {"accuracy": row[0] / row[1], "examples": row[1]} for own, row in table.items()}
    return {
        "worst_group": hits / examples,
        "worst_group_low": low,
        "worst_group_high": high,
        "groups": len(table),
        "details": {"groups": details},
    }


def _group(record: dict[str, Any], number: int, data: str) -> int:
    row = np.ravel(record.get("metadata", ()))
    if number >= len(row):
        raise ConfigError(
            f"{data}: record '{record.get('key')}' has {len(row)} numbers of metadata, and group={number} needs "
            f"{number + 1}. They come from an .npy file beside the label."
        )
    return int(row[number])


def _nearest(embedding: jax.Array, classes: jax.Array, count: int) -> jax.Array:
    """[B, count] the classes with the largest scores, of equal ones the lowest first; -1: a score is not finite."""
    similarity = jnp.matmul(embedding, classes.T, precision="highest")
    finite = jnp.isfinite(similarity).all(axis=1, keepdims=True)
    return jnp.where(finite, jax.lax.top_k(similarity, count)[1], -1)
