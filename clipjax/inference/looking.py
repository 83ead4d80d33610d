"""The source and the evaluators for data that a user only points at: `clipjax eval --data=FOLDER`."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, EvalConfig, EvaluationConfig, EvaluatorConfig, SourceConfig, require
from clipjax.data.finding import captions_of_images, list_files
from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.probe import read_labels
from clipjax.data.records import MANIFEST, RecordError
from clipjax.data.sources import FolderConfig, ParquetConfig, Source, WebDatasetConfig, open_source
from clipjax.data.sources.columns import parquet_columns, table_columns
from clipjax.data.sources.tables import TABLES
from clipjax.eval import MultilabelConfig, RetrievalConfig, ZeroShotConfig
from clipjax.files import glob_visible
from clipjax.storage import as_path, is_remote

NAME = "data"  # of the evaluators' results
LOOKED_AT = 64  # records that show whether there are labels and captions


def find_source(path: str | Path, split: str = "test") -> SourceConfig:
    """The options of a source for a folder or a file, by what is in it.

    Known are records of `clipjax` (manifest.json), tars, Parquet files, tables and images, in this order; the split's
    folder is looked into too. Columns are chosen by their usual names. Raises ConfigError for a path that does not
    exist or holds none of these.
    """
    path = as_path(path)
    require(path.exists(), f"--data={path} does not exist.")
    if path.is_file():
        names = {path.suffix.lower()}
    else:
        if (path / MANIFEST).is_file():
            return SourceConfig(path=str(path), split=split)
        found = [
            as_path(name)
            for pattern in ("*", f"{split}/*")
            for name in glob_visible(f"{glob.escape(str(path))}/{pattern}")
        ]
        names = {name.suffix.lower() for name in found if is_remote(path) or name.is_file()}
    if ".tar" in names:
        return WebDatasetConfig(path=str(path), split=split)
    if ".parquet" in names:
        return parquet_columns(ParquetConfig(path=str(path), split=split), {})
    require(
        not is_remote(path),
        f"--data={path} holds neither {MANIFEST} nor .tar or .parquet files, in it or in its folder '{split}'. Copy "
        "other data to a local disk, or mount the bucket (docs/buckets.md).",
    )
    tables = [path] if path.is_file() else [name for name in found if name.suffix.lower() in TABLES]
    if len(tables) == 1 and tables[0].suffix.lower() in TABLES:
        return table_columns(tables[0], {})
    images = names & set(IMAGE_SUFFIXES) or (path.is_dir() and _has_images(path))
    if images and path.is_dir():
        listing = list_files(path / split if split and (path / split).is_dir() else path)
        return FolderConfig(path=str(path), split=split, captions=captions_of_images(listing) or "files")
    raise ConfigError(
        f"--data={path} holds nothing that is known: expected {MANIFEST}, .tar, .parquet or image files, or one table "
        f"({', '.join(TABLES)}), in it or in its folder '{split}'. --config takes a file that names any source."
    )


def evaluation_of(path: str | Path, split: str = "test") -> EvaluationConfig:
    """Zero-shot classification where the data has labels and class names, and retrieval where it has captions.

    Opens the data and reads a few records. Raises ConfigError for data with neither, ManifestError for data that cannot
    be read.
    """
    config = find_source(path, split)
    source = open_source(config)
    evaluators = _by_layout(config, source) or _by_records(config, source)
    require(
        bool(evaluators),
        f"--data={path}, split '{split}': the records have neither labels with class names nor captions that differ.",
    )
    return EvaluationConfig(eval=EvalConfig(evaluators=evaluators))


def evaluators_of(config: SourceConfig, source: Source) -> dict[str, EvaluatorConfig]:
    """Evaluators for an open source by their own names, "zero_shot" or "retrieval"; {} where none fits."""
    found = _by_layout(config, source) or _by_records(config, source)
    return {evaluator.name: evaluator for evaluator in found.values()}


def has_captions(source: Source) -> bool:
    """Whether the first records have texts other than the names of the source's classes."""
    captions = {text for index in range(min(LOOKED_AT, len(source))) for text in _captions(source, index)}
    return bool(captions - set(source.class_names))


def _by_layout(config: SourceConfig, source: Source) -> dict[str, EvaluatorConfig]:
    """For sets that say their task themselves; {} for others."""
    return {
        "classification": {NAME: ZeroShotConfig(source=config)},
        "multilabel": {NAME: MultilabelConfig(source=config)},
        "retrieval": {NAME: RetrievalConfig(source=config, all_captions=True)},
    }.get(getattr(source, "task", ""), {})


def _by_records(config: SourceConfig, source: Source) -> dict[str, EvaluatorConfig]:
    evaluators: dict[str, Any] = {}
    if source.class_names and (read_labels(source, LOOKED_AT).labels >= 0).any():
        evaluators[NAME] = ZeroShotConfig(source=config)
    if has_captions(source):
        evaluators[f"{NAME}_retrieval" if evaluators else NAME] = RetrievalConfig(source=config, all_captions=True)
    return evaluators


def _captions(source: Source, index: int) -> list[str]:
    try:
        return source[index]["texts"]
    except RecordError:
        return []


def _has_images(path: Path) -> bool:
    return any(next(path.rglob(f"*{suffix}"), None) for suffix in IMAGE_SUFFIXES)
