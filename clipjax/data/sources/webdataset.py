"""WebDataset tars as a source: read where they lie, in any order, without unpacking."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from clipjax.config import SourceConfig
from clipjax.config.fields import ORDER, experiment, runtime
from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.labels import ClassNames, names_beside, one_list_of_names
from clipjax.data.records import RecordError
from clipjax.data.sources.fields import captions, decode, pick
from clipjax.data.sources.local_files import OpenFiles, find_files
from clipjax.data.sources.tar_index import TarError, TarIndex, allowed, load_index, members, split_name

IMAGES = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
CAPTION_FIELDS = "caption,captions,text,texts"
MAX_SAMPLE = 1 << 30  # bytes
INDEXING_THREADS = 8  # for disks and networks that answer slowly
PROGRESS_SECONDS = 30

Parts = dict[str, bytes]  # extension -> content


@dataclass(frozen=True)
class WebDatasetConfig(SourceConfig):
    """path: tars, by their folder, file or pattern ("shards/{00000..00012}.tar")."""

    name: str = "webdataset"
    data_dir: str = runtime("")  # where the indexes are kept; "": beside the tars
    image_key: str = experiment("", fixed=ORDER)  # extension of the image; "": that of any image format
    # fields of the .json, or "txt" for the .txt, joined by commas; "": the .txt, or without one CAPTION_FIELDS
    text_key: str = experiment("", fixed=ORDER)
    # extension of the file with the number or the name of the class; else a field of the .json
    label_key: str = experiment("cls", fixed=ORDER)


class WebDatasetSource:
    """The samples of one or many tars (see local_files.find_files), each with an image and captions.

    Labels are read by the rule of clipjax.data.labels; class names are those of classnames.txt, which lies beside the
    tars or in the folder above. A sample without captions takes the name of its class. Reading a sample is one read of
    the tar. Raises ManifestError for tars that are missing, cut, damaged or compressed.
    """

    def __init__(self, config: WebDatasetConfig):
        self.images = (config.image_key.lower(),) if config.image_key else IMAGES
        asked = [name.strip() for name in config.text_key.split(",") if name.strip()]
        self.wants_txt, self.one_or_other = not asked or "txt" in asked, not asked
        self.fields = ",".join(name for name in asked if name != "txt") if asked else CAPTION_FIELDS
        self.label = config.label_key
        files = find_files(config, (".tar",))
        self.files = [str(file) for file in files]
        indexes = _load_indexes(self.files, config)
        self.spans = [index.spans for index in indexes]
        self.starts = np.cumsum([0, *map(len, self.spans)])
        self.refused = sum(index.refused for index in indexes)
        if self.refused:
            worst = max(zip(self.files, indexes, strict=True), key=lambda pair: pair[1].refused)[0]
            logging.warning(
                "%d files in the tars of %s are not read: links, devices, or names that climb out of the folder. Most "
                "of them are in %s.", self.refused, config.path, worst,
            )  # fmt: skip
        self.names = names_of(self.files)
        self.class_names = self.names.names
        self.open_files = OpenFiles()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, number = self.find(index)
        start, end = self.spans[file][number].tolist()
        key, parts = read_sample(self.open_files, self.files[file], start, end)
        image = find_image(parts, self.images)
        if image is None:
            raise RecordError("no image", f"'{key}' has {_names(parts)}, none of them .{', .'.join(self.images)}")
        label = class_of(parts, key, self.label, self.names)
        return {"image": image, "texts": self.texts(parts, label, key), "key": key, "label": label, "pair_id": -1}

    def where(self, index: int) -> tuple[str, int]:
        file, number = self.find(index)
        return self.files[file], number

    def find(self, index: int) -> tuple[int, int]:
        """(number of the file, number of the sample in it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = int(np.searchsorted(self.starts, index, side="right")) - 1
        return file, index - int(self.starts[file])

    def texts(self, parts: Parts, label: int, key: str) -> list[str]:
        """The sample's captions. Raises RecordError where it has none."""
        plain = decode(parts["txt"], f"'{key}.txt'").strip() if "txt" in parts and self.wants_txt else ""
        texts = [plain] if plain else []
        if "json" in parts and self.fields and not (self.one_or_other and texts):
            texts += captions(_json(parts["json"], key), self.fields)
        if not texts and 0 <= label < len(self.class_names):
            texts = [self.class_names[label]]
        if not texts:
            raise RecordError("no caption", f"'{key}' has {_names(parts)} and no caption in them")
        return texts


def samples(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(name, content) of a tar's files, in its order -> (key, [(extension, content), ...]) of each sample.

    A sample is a run of files with one key, WebDataset's rule (tar_index.split_name). Files that belong to no sample
    are left out. Holds one sample at a time.
    """
    current, parts = None, []
    for name, content in files:
        split = split_name(name)
        if split is None:
            continue
        key, extension = split
        if key != current:
            if parts:
                yield current, parts
            current, parts = key, []
        parts.append((extension, content))
    if parts:
        yield current, parts


def label_value(parts: Parts, key: str, label_key: str) -> tuple[Any, str]:
    """(the sample's label as it is in the tar, where it is): of the file with the extension label_key, or the .json.

    None where there is none; the .json is not read for the default "cls". Raises RecordError for a .json that is not
    JSON.
    """
    if label_key in parts:
        return parts[label_key], f"label '{key}.{label_key}'"
    if "json" in parts and label_key not in ("", WebDatasetConfig.label_key):
        return pick(_json(parts["json"], key), label_key), f"label '{label_key}' of '{key}.json'"
    return None, ""


def class_of(parts: Parts, key: str, label_key: str, names: ClassNames) -> int:
    """The sample's label, -1: none. Raises RecordError."""
    return names.number(*label_value(parts, key, label_key))


def names_of(tars: Sequence[str]) -> ClassNames:
    """The class names in a classnames.txt in the folder of the tars or the one above. Raises ManifestError.

    Tars of several folders must have the same names.
    """
    folders = dict.fromkeys(Path(tar).parent for tar in tars)
    return one_list_of_names(names_beside(folder, folder.parent) for folder in folders)


def find_image(parts: Parts, extensions: Iterable[str] = IMAGES) -> bytes | None:
    """The file with the first of these extensions that the sample has."""
    return next((parts[extension] for extension in extensions if extension in parts), None)


def read_sample(open_files: OpenFiles, path: str, start: int, end: int) -> tuple[str, Parts]:
    """(key, parts) of the sample in bytes start..end of a tar. Raises RecordError."""
    if end - start > MAX_SAMPLE:
        raise RecordError("record too large", f"{end - start} bytes from byte {start} on, the limit is {MAX_SAMPLE}")
    data = open_files.read(path, start, end - start)
    key, parts = "", {}
    try:
        own = [member for member in members(io.BytesIO(data), len(data)) if allowed(member)]
    except TarError as error:
        raise RecordError("unreadable record", f"in the {len(data)} bytes from byte {start} on, {error}") from error
    for key, files in samples((member.name, data[member.data : member.data + member.size]) for member in own):
        for extension, content in files:
            if extension in parts:
                raise RecordError("corrupt record", f"'{key}.{extension}' is there twice")
            parts[extension] = content
    return key, parts


def _load_indexes(files: list[str], config: WebDatasetConfig) -> list[TarIndex]:
    # Each process goes in a random order, so that processes that start together share the work: each finds indexes
    # that others have saved.
    order = random.SystemRandom().sample(range(len(files)), len(files))
    indexes: dict[int, TarIndex] = {}
    told = time.monotonic()
    with ThreadPoolExecutor(INDEXING_THREADS) as pool:
        loaded = pool.map(lambda number: load_index(files[number], config.data_dir), order)
        for number, index in zip(order, loaded, strict=True):
            indexes[number] = index
            if time.monotonic() > told + PROGRESS_SECONDS:
                told = time.monotonic()
                logging.warning("Indexing the tars of %s: %d of %d", config.path, len(indexes), len(files))
    return [indexes[number] for number in range(len(files))]


def _json(data: bytes, key: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError("corrupt record", f"'{key}.json' is not JSON: {error}") from error


def _names(parts: Parts) -> str:
    return ", ".join(f".{name}" for name in sorted(parts)) or "no file"
