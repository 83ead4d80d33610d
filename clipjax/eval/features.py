"""The features and labels of the splits that a probe learns from and scores, on the host, with the checks of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging

from clipjax.config import ConfigError, EvaluatorConfig, SourceConfig, require
from clipjax.config.fields import part, runtime
from clipjax.data.labels import first_difference, match_names
from clipjax.eval.split import Split
from clipjax.mesh import to_host

Embed = Callable[[dict[str, jax.Array]], jax.Array]
LabelsOf = Callable[[], tuple[np.ndarray, bool]]  # ([n] labels, -1: none; whether they are all of the source's)


@dataclass(frozen=True)
class ProbeConfig(EvaluatorConfig):
    """What the probes share: `train` has the labelled images to learn from, `source` those to classify."""

    train: SourceConfig = part("clipjax.data.sources:SOURCES", "array_record")
    # before_projection: what enters the image tower's projection (or the pooled output, if it has none), not normalised
    features: Literal["image_embedding", "before_projection"] = runtime("image_embedding")

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The data that it reads: the split to score, the one to train on and, if there is one, for choosing."""
        chooses = getattr(self, "validation", None)
        own = {"validation": chooses} if chooses is not None and chooses.path else {}
        return {"source": self.source, "train": self.train, **own}

    @property
    def embeds(self) -> tuple[str, ...]:
        """The towers that it needs."""
        return ("image",)

    @property
    def needs_features(self) -> bool:
        """Whether it reads what enters the projection."""
        return self.features == "before_projection"


class Features(NamedTuple):
    """The features of a split's labelled records, in the order of the records; the same on every process."""

    x: np.ndarray  # [N, D] float32
    labels: np.ndarray  # [N] int64
    unlabelled: int  # records without a label
    unreadable: int  # bad records, left out


class ProbeData(NamedTuple):
    """The splits of a probe. Labels are lines of `names`, or numbers below `classes` where there are no names."""

    names: Sequence[str]
    classes: int
    train: Features
    test: Features
    validation: Features | None


def check_probe(
    config: ProbeConfig,
    *,
    class_names: Sequence[str] | None = None,
    labels: LabelsOf | None = None,
    others: Mapping[str, tuple[Sequence[str], LabelsOf]] | None = None,
) -> None:
    """Refuses splits that are the same, whose classes differ, or whose labels are beyond them. Raises ConfigError.

    class_names, labels: those of the split to score; None while it is not open yet. others: those of the other splits.
    """
    given = list(config.sources.items())
    for position, (field, source) in enumerate(given):
        for other_field, other in given[:position]:
            require(
                not _same(source, other),
                f"{field} and {other_field} are the same split, {_data(source)}: the probe would be scored on what it "
                "learned from. Give them different splits.",
            )
    if class_names is None or others is None:
        return
    names_of = {"source": class_names} | {field: names for field, (names, _) in others.items()}
    names, lines = resolve_classes(config, names_of)
    for field, read in {"source": labels, **{field: labels_of for field, (_, labels_of) in others.items()}}.items():
        if read is None:
            continue
        found, whole = read()
        _check_labels(config.sources[field], found, names_of[field], names, whole)
        seen = np.unique(found[found >= 0])
        require(
            field != "train" or not whole or len(seen) > 1,
            f"{_data(config.train)}: all labelled records have the label {seen.max(initial=0)}; a probe needs at "
            "least two classes to learn.",
        )


def resolve_classes(
    config: ProbeConfig, names_of: Mapping[str, Sequence[str]]
) -> tuple[Sequence[str], dict[str, list[int] | None]]:
    """(the names of the classes, for each split the line of each of its labels in them; None: labels are lines).

    names_of: the names of each split's labels, by the field of its source. The longest list is the one to learn;
    others are matched by name, which is logged. Raises ConfigError where a name is not exactly one of its lines.
    """
    longest = max(names_of, key=lambda field: (len(names_of[field]), field == "train"))
    names = names_of[longest]
    lines: dict[str, list[int] | None] = {}
    for field, own in names_of.items():
        if not own:
            lines[field] = None
            continue
        found = match_names(own, names)
        require(
            found is not None,
            f"The class names of {_data(config.sources[field])} and of {_data(config.sources[longest])} differ: "
            f"{first_difference(own, names)}. Labels would mean other classes. Give both splits the same names.",
        )
        lines[field] = found
        if found != list(range(len(own))):
            logging.warning(
                "%s has its class names in another order than %s: labels are matched by name.",
                _data(config.sources[field]), _data(config.sources[longest]),
            )  # fmt: skip
    return names, lines


def probe_data(
    config: ProbeConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Embed,
    class_names: Sequence[str],
    train: Split,
    validation: Split | None = None,
    image_features: Embed | None = None,
    where: Callable[[int], tuple[str, int]] | None = None,
    **_: object,
) -> ProbeData:
    """Reads and embeds all splits of a probe, from the arguments of its `evaluate`. All processes call it together.

    Raises ConfigError as check_probe does, for records whose
    features are not finite, for splits without a labelled record, and for splits with the same features.
    """
    splits = {"train": train} | ({"validation": validation} if validation is not None else {})
    names, lines = resolve_classes(
        config, {"source": class_names} | {field: split.class_names for field, split in splits.items()}
    )
    embed = image_features if config.needs_features else embed_images
    require(embed is not None, "features='before_projection': this model does not give them.")
    found: dict[str, Features] = {}
    for field, (read, place) in {
        **{field: (split.batches, split.where) for field, split in splits.items()},
        "source": (batches, where),
    }.items():
        features, own = collect(read(), embed, _data(config.sources[field]), place), lines[field]
        _check_labels(config.sources[field], features.labels, own or (), names, whole=True)
        found[field] = features if own is None else features._replace(labels=np.array(own)[features.labels])
    test, train = found["source"], found["train"]
    require(
        not (test.x.shape == train.x.shape and np.array_equal(test.x, train.x)),
        f"{_data(config.source)} and {_data(config.train)} hold the same images: the probe would be scored on what it "
        "learned from. Give source and train different splits.",
    )
    require(
        len(np.unique(train.labels)) > 1,
        f"{_data(config.train)}: all labelled records have the label {train.labels[0]}; a probe needs at least two "
        "classes to learn.",
    )
    classes = len(names) or 1 + max(int(features.labels.max()) for features in found.values())
    untrained = np.setdiff1d(test.labels, train.labels)
    if len(untrained):
        logging.warning(
            "%s: %d classes of the records to classify have no training record and cannot be learned: %s",
            _data(config.train), len(untrained), ", ".join(str(names[c] if names else c) for c in untrained[:10]),
        )  # fmt: skip
    return ProbeData(names, classes, train, test, found.get("validation"))


def collect(
    batches: Iterator[dict[str, jax.Array]],
    embed: Embed,
    data: str,
    where: Callable[[int], tuple[str, int]] | None = None,
) -> Features:
    """The features of every labelled record, on every process. All processes call it together.

    batches: global arrays with label, valid and index. data: the split, for errors. Raises ConfigError for features
    that are not finite, naming the first such record, and where no record has a label.
    """
    xs, labels, indices, unreadable = [], [], [], 0
    for batch in batches:
        x, label, valid, index = to_host((embed(batch), batch["label"], batch["valid"], batch["index"]))
        unreadable += int(np.sum(~valid & (index >= 0)))
        xs.append(np.asarray(x[valid], np.float32))
        labels.append(label[valid])
        indices.append(index[valid])
    total = sum(map(len, labels))
    require(total > 0, f"{data}: the split is empty, or none of its {unreadable} records could be read.")
    x, label, index = (np.concatenate(column) for column in (xs, labels, indices))
    check_finite(x, index, data, where)
    kept = label >= 0
    require(kept.any(), f"{data}: no record has a label. Does the source's label_key name the field that has it?")
    return Features(x[kept], label[kept].astype(np.int64), int(total - kept.sum()), unreadable)


def check_finite(
    x: np.ndarray, index: np.ndarray, data: str, where: Callable[[int], tuple[str, int]] | None, what: str = "features"
) -> None:
    """Raises ConfigError, naming the first record, where a row of x [N, D] is not finite; index: [N] of records."""
    broken = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(broken):
        first = int(index[broken[0]])
        place = "{} record {}".format(*where(first)) if where else f"record {first}"
        raise ConfigError(
            f"{data}: the {what} of {len(broken)} of {len(x)} records are not finite; the first is {place}. Have the "
            "weights diverged, or overflowed in the model's dtype?"
        )


def _check_labels(
    source: SourceConfig, labels: np.ndarray, own: Sequence[Any], names: Sequence[str], whole: bool
) -> None:
    known, largest = len(own) or len(names), int(labels.max(initial=-1))
    require(
        not known or largest < known,
        f"{_data(source)}: a record has the label {largest}, but there are {known} class names. Expected a name for "
        "every label, counted from 0.",
    )
    require(
        largest >= 0 or not whole,
        f"{_data(source)}: no record has a label. Does the source's label_key name the field that has it?",
    )


def _same(one: SourceConfig, other: SourceConfig) -> bool:
    """Whether both read the same records, whatever they read of them."""
    paths = [os.path.realpath(source.path) if source.path else "" for source in (one, other)]
    return one == other or (one.name, paths[0], one.split) == (other.name, paths[1], other.split)


def _data(source: SourceConfig) -> str:
    return f"{source.path}, split '{source.split}'"


def unit_rows(x: np.ndarray) -> np.ndarray:
    """x [N, D] with rows of unit length; a zero row stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def stratified_share(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """[N] bool: about `share` of each class's records, drawn at random; never the only record of a class."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for own in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == own))
        chosen[members[: min(len(members) - 1, round(share * len(members)))]] = True
    return chosen
