"""Whether a model prefers an image's true caption over false ones, and, of pairs, a caption's image over the other.

Winoground's scores are those of 2204.03162, section 3.2; ARO (2210.01936) and SugarCrepe (2306.14610) average groups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
from absl import logging

from clipjax.config import ConfigError, EvaluatorConfig, require
from clipjax.config.fields import runtime
from clipjax.config.ranges import COUNT
from clipjax.data.labels import read_class_names as read_names_file
from clipjax.data.records import RecordError
from clipjax.eval.intervals import mean_of_shares_interval, wilson_interval
from clipjax.files import TextFileError
from clipjax.mesh import to_host

TOLD = 5  # groups or records that a message names


@dataclass(frozen=True)
class CompositionalConfig(EvaluatorConfig):
    """The options of the choice between captions; the first text of a record is the true one."""

    name: str = "compositional"
    published_task: ClassVar[str] = "image_caption_selection"
    # of equal scores: "against" the model; "first": the first caption or image wins, and the true caption comes first
    ties: Literal["against", "first"] = runtime("against")
    min_group: int = runtime(1, within=COUNT)  # examples of a group that takes part in the mean over groups
    # text file of groups that take no part in the mean over groups, one name per line
    skip_groups: str = runtime("", path="own")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it reports: of pairs all but the mean over groups, else those of texts."""
        shares = ("text_score", "macro_text_score", "image_score", "group_score")
        each = (name + end for name in shares for end in ("", "_low", "_high", "_chance"))
        return (*each, "groups", "examples", "left_out", "indistinguishable")

    def published_metrics(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """CLIP_benchmark's names; with one image to choose from, it counts the image as right."""
        whole = {"image_score": 1.0, "group_score": result["text_score"]} | result
        return {"image_acc": whole["image_score"], "text_acc": whole["text_score"], "acc": whole["group_score"]}


class Scores(NamedTuple):
    """The similarities of the records that could be read, in the order of the source."""

    index: np.ndarray  # [n] int, of the record
    label: np.ndarray  # [n] int, its group; -1: none
    pair_id: np.ndarray  # [n] int, -1: not one of a pair
    own: np.ndarray  # [n] float64, of its image and its true caption
    false: list[np.ndarray]  # n x [false captions] float64
    same_tokens: np.ndarray  # [n] bool, whether a false caption has the tokens of the true one
    bad: int  # records that could not be read


def check(
    config: CompositionalConfig,
    *,
    class_names: Sequence[str] | None = None,
    captions: Callable[[int], Sequence[str]] | None = None,
) -> None:
    """Refuses a skip_groups that names no group of the source, and a source whose first record has one caption only.

    class_names: the source's groups; captions: (index of a record) -> its texts; None while it is not open yet. Raises
    ConfigError.
    """
    skipped = _skipped(config)
    if class_names is not None and config.skip_groups:
        require(
            not skipped.isdisjoint(class_names),
            f"None of the {len(skipped)} names in skip_groups='{config.skip_groups}' is a group of {_data(config)}, "
            f"whose groups are {', '.join(class_names[:TOLD]) or 'none'}{', ...' if class_names[TOLD:] else ''}.",
        )
    if captions is not None:
        with contextlib.suppress(RecordError):  # left out of the evaluation
            _check_captions(captions(0), 0, config, None)


def evaluate(
    config: CompositionalConfig,
    *,
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    captions: Callable[[int], Sequence[str]],
    class_names: Sequence[str] = (),
    where: Callable[[int], tuple[str, int]] | None = None,
    **_: object,
) -> dict[str, Any]:
    """Scores of every record's texts, the first of which is true. All processes call it together.

    A record's image is right if its true caption scores above each false one; scores that are not finite are wrong,
    and so are ties unless config.ties says otherwise. Scores are computed in float64 from float32 embeddings.

    batches: global arrays {"label", "pair_id", "index" [B] int32 (-1: none), "valid" [B] bool, ...}.
    captions: (index of a record) -> its texts. class_names: the names of the groups, which labels index.
    where: (index of a record) -> (its file, its position there), for errors.
    Returns text_score with text_score_low, _high (95%) and _chance, examples, left_out (records that could not be read,
      or pairs of which an image could not), indistinguishable (records with a false caption that has the tokens of the
      true one) and details; of records with groups macro_text_score and groups; of pairs image_score and group_score.
    Raises ConfigError for records with one caption, and for pair_ids that do not make pairs.
    """
    of_pairs: dict[int, Sequence[str]] = {}

    def texts_of(index: int, pair_id: int) -> Sequence[str]:
        texts = captions(index)
        _check_captions(texts, index, config, where)
        if pair_id >= 0:
            of_pairs[index] = texts
        return texts

    found = _score(batches, embed_images, embed_texts, tokenizer, texts_of)
    require(len(found.own) > 0, f"{_data(config)}: no record could be read.")
    if found.same_tokens.any():
        logging.warning(
            "%d of %d records have a false caption with the same tokens as the true one, such as record %d: no model "
            "can tell them apart. Are captions cut at the context length?",
            found.same_tokens.sum(), len(found.own), found.index[found.same_tokens.argmax()],
        )  # fmt: skip
    finite = [np.isfinite(own) and np.isfinite(false).all() for own, false in zip(found.own, found.false, strict=True)]
    if not all(finite):
        logging.warning("%d of %d records have scores that are not finite", len(finite) - sum(finite), len(finite))
    if (found.pair_id >= 0).any():
        return _of_pairs(found, of_pairs, config, class_names, where)
    return _of_records(found, config, class_names)


def _score(
    batches: Callable[[], Iterator[dict[str, jax.Array]]],
    embed_images: Callable[[dict[str, jax.Array]], jax.Array],
    embed_texts: Callable[[np.ndarray], np.ndarray],
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    texts_of: Callable[[int, int], Sequence[str]],
) -> Scores:
    columns: list[tuple[np.ndarray, ...]] = []
    false: list[np.ndarray] = []
    bad = 0
    for batch in batches():
        image, valid, *rows = to_host(
            (embed_images(batch), batch["valid"], batch["index"], batch["label"], batch["pair_id"])
        )
        bad += int(np.sum(~valid & (rows[0] >= 0)))
        index, label, pair_id = (column[valid] for column in rows)
        if not len(index):
            continue
        texts = [texts_of(int(i), int(pair)) for i, pair in zip(index, pair_id, strict=True)]
        ends = np.cumsum([len(own) for own in texts])[:-1]
        # Each text once: texts with the same tokens are then equal to the last bit, and count as ties.
        tokens, inverse = np.unique(tokenizer([text for own in texts for text in own]), axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        text = np.asarray(embed_texts(tokens), np.float64)[inverse]
        image = np.repeat(image[valid].astype(np.float64), [len(own) for own in texts], axis=0)
        with np.errstate(all="ignore"):  # not finite: told at the end
            scores = np.split(np.sum(image * text, axis=1), ends)
        same = np.array([(own[1:] == own[0]).any() for own in np.split(inverse, ends)])
        columns.append((index, label, pair_id, np.array([each[0] for each in scores]), same))
        false += [each[1:] for each in scores]
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)] or [np.zeros(0)] * 5
    index, label, pair_id, own, same = joined
    return Scores(index, label, pair_id, own, false, same, bad)


def _beats(one: np.ndarray, other: np.ndarray, ties_win: bool) -> np.ndarray:
    """Whether each score is finite and above another, or equal where ties_win. NaN is neither."""
    return np.isfinite(one) & ((one > other) | (ties_win & (one == other)))


def _of_records(found: Scores, config: CompositionalConfig, class_names: Sequence[str]) -> dict[str, Any]:
    first = config.ties == "first"
    right = np.array([_beats(own, false, first).all() for own, false in zip(found.own, found.false, strict=True)])
    chance = np.array([1 / (1 + len(false)) for false in found.false])
    result = {**_share("text_score", right), "text_score_chance": float(np.mean(chance))}
    table = []
    for group in np.unique(found.label[found.label >= 0]).tolist():
        of_group = found.label == group
        name = class_names[group] if group < len(class_names) else str(group)
        share = _share("text_score", right[of_group])
        table.append({"name": name, "examples": int(of_group.sum()), **share, "chance": float(chance[of_group].mean())})
    if len(table) > 1:
        result |= _macro(table, config)
    counts = {"examples": len(right), "left_out": found.bad, "indistinguishable": int(found.same_tokens.sum())}
    return {**result, **counts, **({"details": {"groups": table}} if table else {})}


def _macro(table: list[dict[str, Any]], config: CompositionalConfig) -> dict[str, Any]:
    """The mean over the groups that take part in it; says in the table which do."""
    skipped = _skipped(config)
    for row in table:
        row["in_mean"] = row["examples"] >= config.min_group and row["name"] not in skipped
    rows = [row for row in table if row["in_mean"]]
    largest = max(row["examples"] for row in table)
    require(
        len(rows) > 0,
        f"{_data(config)}: no group takes part in the mean over groups. min_group={config.min_group} and skip_groups="
        f"'{config.skip_groups}' leave out all {len(table)}, the largest of which has {largest} examples.",
    )
    totals = np.array([row["examples"] for row in rows])
    shares = np.array([row["text_score"] for row in rows])
    low, high = mean_of_shares_interval(np.rint(shares * totals).astype(int), totals)
    numbers = {"macro_text_score": float(np.mean(shares)), "macro_text_score_low": low, "macro_text_score_high": high}
    return {**numbers, "macro_text_score_chance": float(np.mean([row["chance"] for row in rows])), "groups": len(rows)}


def _of_pairs(
    found: Scores,
    texts: dict[int, Sequence[str]],
    config: CompositionalConfig,
    class_names: Sequence[str],
    where: Callable[[int], tuple[str, int]] | None,
) -> dict[str, Any]:
    """Winoground's scores: of a pair, image i belongs to caption i."""
    alone = found.index[found.pair_id < 0]
    require(
        not len(alone),
        f"{_data(config)}: {len(alone)} records are of no pair, such as {_place(alone[:1], where)}, and "
        f"{len(found.index) - len(alone)} are. Expected a pair_id in all records, or in none.",
    )
    order = np.argsort(found.pair_id, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(found.pair_id[order])) + 1)
    for rows in groups:
        own = [list(texts[int(i)]) for i in found.index[rows]]
        is_pair = len(rows) == 2 and len(own[0]) == 2 and own[0] == own[1][::-1]
        require(
            is_pair or (len(rows) == 1 and len(own[0]) == 2),
            f"{_data(config)}: the records with pair_id {found.pair_id[rows[0]]} are no pair: "
            f"{_place(found.index[rows], where)}, with the captions {'; '.join(map(str, own))}. Expected two images, "
            "each with its own caption and then the other's.",
        )
    # Of a pair of which one image could not be read, the other says nothing.
    pairs = np.array([rows for rows in groups if len(rows) == 2])
    halves = sum(len(rows) == 1 for rows in groups)
    require(len(pairs) > 0, f"{_data(config)}: of no pair could both images be read.")
    own = found.own[pairs]  # [n, 2]: of image i and caption i
    other = np.array([false[0] for false in found.false])[pairs]  # of image i and caption 1 - i
    # By "first", the first of two equal scores wins, which is right for caption 0 and image 0 only.
    ties_win = np.array([config.ties == "first", False])
    right = {
        "text_score": _beats(own, other, ties_win).all(1),
        "image_score": _beats(own, other[:, ::-1], ties_win).all(1),
    }
    right["group_score"] = right["text_score"] & right["image_score"]
    result: dict[str, Any] = {}
    for (name, hits), chance in zip(right.items(), (1 / 4, 1 / 4, 1 / 6), strict=True):
        result |= {**_share(name, hits), f"{name}_chance": chance}
    label, table = found.label[pairs[:, 0]], []
    for group in np.unique(label[label >= 0]).tolist():
        name = class_names[group] if group < len(class_names) else str(group)
        of_group, row = label == group, {"name": name, "examples": int((label == group).sum())}
        for score, hits in right.items():
            row |= _share(score, hits[of_group])
        table.append(row)
    left_out = halves + max(0, found.bad - halves) // 2
    counts = {"examples": len(pairs), "left_out": left_out, "indistinguishable": int(found.same_tokens.sum())}
    return {**result, **counts, **({"details": {"groups": table}} if table else {})}


def _share(name: str, hits: np.ndarray) -> dict[str, float]:
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {name: float(np.mean(hits)), f"{name}_low": low, f"{name}_high": high}


def _check_captions(
    texts: Sequence[str], index: int, config: CompositionalConfig, where: Callable[[int], tuple[str, int]] | None
) -> None:
    require(
        len(texts) > 1,
        f"{_data(config)}: {_place([index], where)} has {len(texts)} caption, expected the true one and then at least "
        "one false one. docs/compositional_sets.md shows the sources that have them.",
    )


def _skipped(config: CompositionalConfig) -> set[str]:
    if not config.skip_groups:
        return set()
    try:
        names = set(read_names_file(config.skip_groups))
    except (OSError, TextFileError) as error:
        raise ConfigError(f"skip_groups='{config.skip_groups}' cannot be read: {error}") from error
    require(len(names) > 0, f"skip_groups='{config.skip_groups}' is empty; expected the name of a group per line.")
    return names


def _data(config: CompositionalConfig) -> str:
    return config.source.path + (f", split '{config.source.split}'" if config.source.split else "")


def _place(indices: Sequence[int] | np.ndarray, where: Callable[[int], tuple[str, int]] | None) -> str:
    places = ["{} record {}".format(*where(int(i))) if where else f"record {i}" for i in indices[:TOLD]]
    return " and ".join(places)
