"""Data: where examples come from, and batches made of them.

    sources/        one file for each kind of source; SOURCES, open_source
    tokenizers/     one file for each kind of tokenizer; TOKENIZERS, make_tokenizer
    images/         encoded images -> pixels or patches
    records.py      the record on disk and its manifest; shards.py writes the files
    labels.py       what a label is, and the class names that labels are lines of
    order.py        which record is example i; mixture.py: the same for several sources
    examples.py     records -> rows of a batch, each a function of its position
    pipeline.py     rows -> batches; read_ahead.py makes them in threads or processes; prefetch.py moves them to devices
    finding.py      which source reads what a path holds
    listing.py      the files of a folder of images
    embeddings.py   embeddings of a frozen tower, stored as records

The names below can be imported from here; each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "embeddings": ("Embeddings", "Row", "open_embeddings", "write_embeddings"),
    "bad_records": ("DataError",),
    "finding": ("Found", "find_data"),
    "labels": ("ClassNames", "read_class_names", "read_label"),
    "images": ("PIXEL_PRESETS", "eval_image", "open_image", "train_image"),
    "mixture": ("Mixture", "make_order", "open_mixture", "open_train"),
    "pipeline": ("TrainIterator", "eval_batches", "make_train_iterator"),
    "prefetch": ("prefetch_to_mesh",),
    "records": ("ManifestError", "RecordError", "decode_record", "encode_record", "read_manifest"),
    "write": ("write_records",),
    "sources": (
        "SOURCES",
        "FolderConfig",
        "HardNegativesConfig",
        "HeldOutConfig",
        "MultilingualConfig",
        "ParquetConfig",
        "Source",
        "TfdsConfig",
        "WebDatasetConfig",
        "open_source",
    ),
    "tokenizers": ("TOKENIZERS", "Tokenizer", "make_tokenizer"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
