"""Prepared TensorFlow datasets as a source, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipjax.config import SourceConfig
from clipjax.config.fields import ORDER, experiment, runtime
from clipjax.data.records import ManifestError, RecordError


@dataclass(frozen=True)
class TfdsConfig(SourceConfig):
    """path: a name with an optional version ("coco_captions:1.1.0"), or the folder of a dataset_info.json.

    A key names a feature, or one inside another: text_key="captions/text".
    """

    name: str = "tfds"
    data_dir: str = runtime("")  # where datasets given by name were prepared; "": TFDS's own folder
    image_key: str = experiment("image", fixed=ORDER)
    text_key: str = experiment("text", fixed=ORDER)
    label_key: str = experiment("label", fixed=ORDER)


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
        label = features[config.label_key] if config.label_key in features else None
        # A list of labels has a dimension; it cannot be this record's class.
        self.has_label = label is not None and label.shape == ()
        self.class_names = tuple(getattr(label, "names", None) or ()) if self.has_label else ()
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
        label = int(example[self.keys.label_key]) if self.has_label else -1
        return {
            "image": bytes(example[self.keys.image_key]),
            "texts": self.texts(example, label),
            "key": str(index),
            "label": label,
            "pair_id": -1,
        }

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
