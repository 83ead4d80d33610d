"""What a folder that TFDS prepared says of itself, without importing tensorflow_datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, require
from clipjax.data.sources.tfds import TfdsConfig
from clipjax.json_files import read_json

INFO, FEATURES = "dataset_info.json", "features.json"
LEVELS = ("", "*/", "*/*/")  # the folder itself, its versions, or its configurations' versions


def prepared_in(folder: Path) -> list[Path]:
    """The folders of prepared data in `folder`: itself, or its versions; [] where it is no folder of TFDS."""
    for level in LEVELS:
        if found := sorted(path.parent for path in folder.glob(level + INFO) if (path.parent / FEATURES).is_file()):
            return found
    return []


def tfds_columns(folder: Path, keys: dict[str, str]) -> tuple[TfdsConfig, list[str]]:
    """(the options that read the folder, its splits): the first image, text and class of its features.

    keys: {"image_key", "text_key", "label_key": feature} that are named. Raises ConfigError for another file format
    than array_record, for a folder without an image, and for damaged files.
    """
    try:
        info, features = (read_json(folder / name) for name in (INFO, FEATURES))
        kind = info.get("fileFormat") or "tfrecord"
        splits = [split["name"] for split in info["splits"]]
        found = sorted(_features(features), key=lambda each: "/" in each[0])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--data={folder}: {INFO} or {FEATURES} is damaged: {type(error).__name__} {error}."
        ) from error
    require(
        kind == "array_record",
        f"--data={folder} was prepared by TFDS as {kind}; expected array_record, which needs no TensorFlow to read. "
        "Prepare it again: tfds build --file_format=array_record, or builder.download_and_prepare() with "
        'file_format="array_record".',
    )
    names = {key: [name for name, of in found if of == key] for key in ("Image", "Text", "ClassLabel")}
    image = keys.get("image_key") or next(iter(names["Image"]), "")
    label = keys.get("label_key") or next(iter(names["ClassLabel"]), "")
    text = keys.get("text_key") or next(iter(names["Text"]), "") or label
    require(
        bool(image and text),
        f"--data={folder}: its features {', '.join(name for name, _ in found) or '(none)'} have no "
        f"{'image' if not image else 'text and no class label'}.",
    )
    return TfdsConfig(path=str(folder), image_key=image, text_key=text, label_key=label), splits


def _features(features: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, kind) of each feature: ("image", "Image"), ("captions/text", "Text").

    Of what is inside another feature, only texts can be read; a class label in a sequence is one of several.
    """
    for name, feature in features["featuresDict"]["features"].items():
        element = feature.get("sequence", {}).get("feature", {})  # of a list
        inside = next((each for each in (feature, element) if "featuresDict" in each), None)
        if inside:
            yield from ((key, kind) for key, kind in _features(inside, f"{prefix}{name}/") if kind == "Text")
        else:
            listed = _kind(element) == "Text"
            yield prefix + name, "Text" if listed else _kind(feature)


def _kind(feature: dict[str, Any]) -> str:
    return feature.get("pythonClassName", "").rpartition(".")[2]
