"""Prepared TensorFlow datasets as a source, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.config import SourceConfig
from clipjax.config.fields import ORDER, experiment, runtime
from clipjax.data.labels import ClassNames
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.fields import missing_column


@dataclass(frozen=True)
class TfdsConfig(SourceConfig):
    """path: a name with an optional version ("coco_captions:1.1.0"), or the folder of a dataset_info.json.

    A key names a feature, or one inside another: text_key="captions/text".
    """

    name: str = "tfds"
    path: str = runtime("")  # a name is no path
    data_dir: str = runtime("", path="data")  # where datasets given by name were prepared; "": TFDS's own folder
    image_key: str = experiment("image", fixed=ORDER)
    text_key: str = experiment("text", fixed=ORDER)
    label_key: str = experiment("label", fixed=ORDER)  # a ClassLabel or a number; "": none


class TfdsSource:
    """One split of a dataset that was prepared with file_format="array_record".

    The name of the class is the caption where text_key is label_key, or where the dataset has no text at all. Nothing
    is downloaded. Raises ManifestError saying what is missing.
    """

    def __init__(self, config: TfdsConfig):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ManifestError(
                f"Source 'tfds' cannot import tensorflow_datasets ({error}). "
                "Run: pip install tensorflow-datasets importlib_resources"
            ) from error
        self.name, self.split, self.keys = config.path, config.split, config
        try:
            if (Path(config.path) / "dataset_info.json").is_file():
                builder = tfds.builder_from_directory(config.path)
            else:
                builder = tfds.builder(config.path, data_dir=config.data_dir or None, file_format="array_record")
            # The image's bytes come through undecoded: the pipeline decodes, as for every source.
            decoders = {config.image_key: tfds.decode.SkipDecoding()}
            self.data = builder.as_data_source(split=config.split, decoders=decoders)
        except Exception as error:  # tfds raises many kinds for a dataset that is not there
            raise ManifestError(
                f"tfds dataset '{config.path}', split '{config.split}', data_dir '{config.data_dir}', cannot be read: "
                f'{str(error).splitlines()[0]} It must have been prepared with file_format="array_record" (tfds build '
                "--file_format=array_record, which for many datasets needs TensorFlow once)."
            ) from error
        features = builder.info.features
        self.has_label = _has_label(features, config)
        label = features[config.label_key] if self.has_label else None
        self.class_names = tuple(getattr(label, "names", None) or ())
        self.names = ClassNames(self.class_names, f"the ClassLabel of tfds dataset '{config.path}'")
        from_names = config.text_key == config.label_key or (
            config.text_key == TfdsConfig.text_key
            and not any(isinstance(feature, tfds.features.Text) for feature in features.values())
        )
        self.has_text = _has_feature(features, config.text_key) and config.text_key != config.label_key
        self.has_text = self.has_text and not (from_names and self.class_names)
        if config.image_key not in features or not (self.has_text or (from_names and self.class_names)):
            raise ManifestError(
                f"tfds dataset '{config.path}' has the features {', '.join(sorted(features))}; the source's "
                f"image_key='{config.image_key}', text_key='{config.text_key}' and label_key='{config.label_key}' "
                "must name an image and a text among them, or text_key and label_key the same class label."
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            example = self.data[index]
        except Exception as error:  # the reader, the parser and each feature's decoder raise their own kinds
            raise RecordError("unreadable record", f"{type(error).__name__}: {error}") from error
        label = self.label(example) if self.has_label else -1
        return {
            "image": bytes(example[self.keys.image_key]),
            "texts": self.texts(example, label),
            "key": str(index),
            "label": label,
            "pair_id": -1,
        }

    def label(self, example: Mapping) -> int:
        value = example[self.keys.label_key]
        return self.names.number(getattr(value, "item", lambda: value)(), f"feature '{self.keys.label_key}'")

    def texts(self, example: Mapping, label: int) -> list[str]:
        if not self.has_text:
            values = [self.class_names[label]] if label >= 0 else []
        else:
            values = example
            for name in self.keys.text_key.split("/"):
                values = values[name]
            values = [values] if isinstance(values, str | bytes) else values
        try:
            texts = [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in values]
        except UnicodeDecodeError as error:
            raise RecordError("not UTF-8", str(error)) from error
        if not texts:
            raise RecordError("no caption", "no text and no label")
        return texts

    def where(self, index: int) -> tuple[str, int]:
        return f"tfds {self.name} {self.split}", index


def _has_feature(features: Any, key: str) -> bool:
    """Whether there is a feature "captions/text", inside another."""
    for name in key.split("/"):
        try:
            features = features[name]
        except (KeyError, TypeError):
            return False
    return True


def _has_label(features: Mapping, config: TfdsConfig) -> bool:
    """Whether the features have the one of config.label_key. Raises ManifestError for one that is no class."""
    if config.label_key not in features:
        if config.label_key not in ("", TfdsConfig.label_key):
            raise ManifestError(
                missing_column(
                    f"tfds dataset '{config.path}'", config.label_key, list(features), "the source's label_key"
                )
            )
        return False
    feature = features[config.label_key]
    kind = getattr(feature, "np_dtype", None)
    if feature.shape != () or kind is None or np.dtype(kind).kind not in "iuf":
        raise ManifestError(
            f"tfds dataset '{config.path}': feature '{config.label_key}' is {feature}, which is not the number of one "
            "class. Set the source's label_key to a ClassLabel, or to '' to read no labels."
        )
    return True
