"""Where examples come from: len(source) and source[i] -> {"image" bytes, "texts", "key", "label", "pair_id"}.

Add a source: one opening function, one row in SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from array_record.python.array_record_data_source import ArrayRecordDataSource

from clipjax.config import SourceConfig, nearest, require
from clipjax.data.records import ManifestError, RecordError, decode_record, read_manifest


class Source(Protocol):
    """Random access to encoded examples. Instances can be pickled for worker processes."""

    class_names: tuple[str, ...]  # what labels index; empty when there are none

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises RecordError for a record that cannot be used."""

    def where(self, index: int) -> str:
        """File and position of a record, for messages."""


def open_source(config: SourceConfig) -> Source:
    """Raises ConfigError for an unknown name, ManifestError for data that is missing or damaged."""
    require(config.name in SOURCES, f"Source name '{config.name}' is unknown.{nearest(config.name, SOURCES)}")
    source = SOURCES[config.name](config)
    if not len(source):
        raise ManifestError(f"{config.path}, split '{config.split}', has no records.")
    return source


class ArrayRecordSource:
    """One split of a folder written by clipjax.data.records.write_records."""

    def __init__(self, config: SourceConfig):
        manifest = read_manifest(config.path)
        if config.split not in manifest["splits"]:
            raise ManifestError(
                f"{config.path} has no split '{config.split}'.{nearest(config.split, manifest['splits'])}"
            )
        shards = manifest["splits"][config.split]["shards"]
        self.files = [str(Path(config.path) / shard["file"]) for shard in shards]
        for path, shard in zip(self.files, shards, strict=True):
            found = Path(path).stat().st_size if Path(path).is_file() else "no file"
            if found != shard["bytes"]:
                raise ManifestError(
                    f"Shard {path}: expected {shard['bytes']} bytes by the manifest, found {found}. "
                    "Copy it again, or build the folder again with --overwrite."
                )
        self.counts = [shard["records"] for shard in shards]
        self.class_names = tuple(manifest["class_names"])
        self.reader = ArrayRecordDataSource(self.files) if self.files else None

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            data = self.reader[index]
        except (ValueError, RuntimeError, IndexError) as error:
            raise RecordError("unreadable record", f"{self.where(index)}: {error}") from error
        return decode_record(data)

    def where(self, index: int) -> str:
        for path, count in zip(self.files, self.counts, strict=True):
            if index < count:
                return f"{path} record {index}"
            index -= count
        raise IndexError(index)


class TfdsSource:
    """A prepared TensorFlow dataset in the array_record format, read without TensorFlow."""

    def __init__(self, config: SourceConfig):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ManifestError(f"source 'tfds' needs the package tensorflow-datasets: {error}") from error
        self.name, self.split = config.path, config.split
        self.keys = {"image": config.image_key, "text": config.text_key, "label": config.label_key}
        builder = tfds.builder(config.path, data_dir=config.data_dir or None, file_format="array_record")
        features = builder.info.features
        for field in ("image", "text"):
            if self.keys[field] not in features and not (field == "text" and self.keys["label"] in features):
                raise ManifestError(
                    f"tfds '{config.path}' has no feature '{self.keys[field]}'; it has {sorted(features)}. "
                    f"Set {field}_key of the source."
                )
        label = features.get(self.keys["label"])
        self.class_names = tuple(getattr(label, "names", None) or ())
        # The image's bytes come through undecoded: the pipeline decodes, as for every source.
        decoders = {self.keys["image"]: tfds.decode.SkipDecoding()}
        self.data = builder.as_data_source(split=config.split, decoders=decoders)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.data[index]
        except Exception as error:
            raise RecordError("unreadable record", f"{self.where(index)}: {error}") from error
        label = int(example.get(self.keys["label"], -1))
        if self.keys["text"] in example:
            texts = example[self.keys["text"]]
            texts = [texts] if isinstance(texts, str | bytes) else list(texts)
            texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts]
        else:
            texts = [self.class_names[label]]
        return {
            "image": bytes(example[self.keys["image"]]),
            "texts": texts,
            "key": str(index),
            "label": label,
            "pair_id": -1,
        }

    def where(self, index: int) -> str:
        return f"tfds {self.name} {self.split} record {index}"


SOURCES: dict[str, Callable[[SourceConfig], Source]] = {"array_record": ArrayRecordSource, "tfds": TfdsSource}
