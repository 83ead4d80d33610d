"""The source and the evaluators for data that a user only points at: `clipjax eval --data=FOLDER`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, EvalConfig, EvaluationConfig, EvaluatorConfig, SourceConfig, require
from clipjax.data.finding import SHARDS, SIDES, find_data, no_split
from clipjax.data.probe import read_labels
from clipjax.data.records import RecordError
from clipjax.data.sources import Source, open_source
from clipjax.data.sources.tables import TABLES
from clipjax.eval import MultilabelConfig, RetrievalConfig, ZeroShotConfig
from clipjax.processes import announce
from clipjax.storage import is_remote

DEFAULT_SPLIT = "test"
LOOKED_AT = 64  # records that show whether there are labels and captions


def data_name(path: str | Path, split: str = "") -> str:
    """What the results on a folder, file or pattern are called: "photos", or "photos_val" for a split that is named.

    A pattern has its folder's name, a file its own without the suffix. Characters other than letters, digits, "_" and
    "-" become "_".
    """
    place = str(path)
    while set(os.path.basename(place)) & set("*?[]{}") and not os.path.exists(place):
        place = os.path.dirname(place)
    stem, suffix = os.path.splitext(os.path.basename(place))
    name = stem if suffix.lower() in (*SHARDS, *TABLES) or Path(place).is_file() else ""
    name = name or os.path.basename(place.rstrip("/") if is_remote(place) else os.path.abspath(place))
    return re.sub(r"[^\w-]", "_", "_".join(filter(None, (name, split)))) or "data"


def find_source(path: str | Path, split: str = "") -> SourceConfig:
    """The options of a source for a folder, a file or a pattern, found as `clipjax init` finds them.

    split: a split that the data have. Where they have none to evaluate on, "validation" names the records that init
    holds out of training (every tenth), and "train" the others. "": the test split, or all records of data without
    splits. Raises ConfigError for a path that does not exist or holds nothing that is known, and for another split.
    """
    return _find(path, split)[0]


def _find(path: str | Path, split: str) -> tuple[SourceConfig, str]:
    """(find_source's, what to print of its records where the data have no such split, with {} for their number)."""
    found = find_data(path, split=split or DEFAULT_SPLIT)
    if found.asked:
        return found.asked, ""
    if not (split or found.splits):
        return found.train, "has no splits: evaluating on all {} records."
    if split in SIDES and found.held_out is None:
        use = "trains on" if split == SIDES[0] else "holds out of training"
        sides, records = found.split(len(open_source(found.train))), f"the {{}} records that clipjax init {use}"
        return sides[SIDES.index(split)], f"has no split '{split}': evaluating on {records}."
    if found.splits:
        raise no_split(path, split or DEFAULT_SPLIT, found.splits)
    raise ConfigError(
        f"--data={path} has no splits, and so no '{split}'. Leave --split out to evaluate on all records; "
        "--split=validation takes those that clipjax init and experiments/finetune.py hold out of training."
    )


def evaluation_of(path: str | Path, split: str = "") -> EvaluationConfig:
    """Zero-shot classification where the data has labels and class names, and retrieval where it has captions.

    split: see find_source. The evaluators are named by data_name. Opens the data, reads a few records, and prints
    which records are evaluated on where the data have no such split. Raises ConfigError for data with neither,
    ManifestError for data that cannot be read.
    """
    config, note = _find(path, split)
    source = open_source(config)
    if note:
        announce(f"{path} {note.format(f'{len(source):,}')}")
    name = data_name(path, split)
    evaluators = _by_layout(config, source, name) or _by_records(config, source, name)
    require(
        bool(evaluators),
        f"--data={path}, split '{config.split}': the records have neither labels with class names nor captions that "
        "differ.",
    )
    return EvaluationConfig(eval=EvalConfig(evaluators=evaluators))


def evaluators_of(config: SourceConfig, source: Source) -> dict[str, EvaluatorConfig]:
    """Evaluators for an open source by their own names, "zero_shot" or "retrieval"; {} where none fits."""
    found = _by_layout(config, source, "data") or _by_records(config, source, "data")
    return {evaluator.name: evaluator for evaluator in found.values()}


def has_captions(source: Source) -> bool:
    """Whether the first records have texts other than the names of the source's classes."""
    captions = {text for index in range(min(LOOKED_AT, len(source))) for text in _captions(source, index)}
    return bool(captions - set(source.class_names))


def _by_layout(config: SourceConfig, source: Source, name: str) -> dict[str, EvaluatorConfig]:
    """For sets that say their task themselves; {} for others."""
    return {
        "classification": {name: ZeroShotConfig(source=config)},
        "multilabel": {name: MultilabelConfig(source=config)},
        "retrieval": {name: RetrievalConfig(source=config, all_captions=True)},
    }.get(getattr(source, "task", ""), {})


def _by_records(config: SourceConfig, source: Source, name: str) -> dict[str, EvaluatorConfig]:
    evaluators: dict[str, Any] = {}
    if source.class_names and (read_labels(source, LOOKED_AT).labels >= 0).any():
        evaluators[name] = ZeroShotConfig(source=config)
    if has_captions(source):
        evaluators[f"{name}_retrieval" if evaluators else name] = RetrievalConfig(source=config, all_captions=True)
    return evaluators


def _captions(source: Source, index: int) -> list[str]:
    try:
        return source[index]["texts"]
    except RecordError:
        return []
