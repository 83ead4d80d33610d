"""WebDataset tars as a source: read where they lie, in any order, without unpacking."""

from __future__ import annotations

import io
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from clipjax.config import SourceConfig
from clipjax.data.records import RecordError
from clipjax.data.sources import fields
from clipjax.data.sources.local_files import OpenFiles, find_files
from clipjax.data.sources.tar_index import TarError, TarIndex, allowed, load_index, members, split_name

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTION_FIELDS = "caption,captions,text,texts"
CLASS_NAMES = "classnames.txt"
MAX_SAMPLE = 1 << 30  # bytes
INDEXING_THREADS = 8  # for disks and networks that answer slowly
TELL_SECONDS = 30


class WebDatasetSource:
    """The samples of one or many tars (see local_files.find_files), each with an image and captions.

    Image: .jpg, .jpeg, .png or .webp; with config.image_key, the file of that extension. Captions: the sample's .txt,
    or without one the .json's fields caption, captions, text or texts, whichever there are; with config.text_key, those
    fields of the .json, and the .txt if "txt" is among them. Without any, the name of the class that .cls
    (config.label_key) counts in classnames.txt, which lies beside the tars or in the folder above.

    A read is one read of the file. Raises ManifestError for tars that are missing, cut, damaged or compressed.
    """

    def __init__(self, config: SourceConfig):
        default = SourceConfig()
        self.images = IMAGES if config.image_key == default.image_key else (config.image_key.lower(),)
        asked = [] if config.text_key == default.text_key else [name.strip() for name in config.text_key.split(",")]
        self.wants_txt, self.one_or_other = not asked or "txt" in asked, not asked
        self.fields = ",".join(name for name in asked if name != "txt") if asked else CAPTION_FIELDS
        self.label = "cls" if config.label_key == default.label_key else config.label_key
        files = find_files(config, (".tar",))
        self.files = [str(file) for file in files]
        indexes = _load_indexes(self.files, config)
        self.spans = [index.spans for index in indexes]
        self.starts = np.cumsum([0, *map(len, self.spans)])
        self.refused = sum(index.refused for index in indexes)
        if self.refused:
            worst = max(zip(self.files, indexes, strict=True), key=lambda pair: pair[1].refused)[0]
            logging.warning(
                "%d files in the tars of %s are not read: links, devices, or names that climb out of the folder; most "
                "of them in %s.", self.refused, config.path, worst,
            )  # fmt: skip
        self.class_names = _class_names(files)
        self.open_files = OpenFiles()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, number = self.find(index)
        start, end = self.spans[file][number].tolist()
        key, parts = read_sample(self.open_files, self.files[file], start, end)
        image = next((parts[name] for name in self.images if name in parts), None)
        if image is None:
            raise RecordError("no image", f"'{key}' has {_names(parts)}, none of them .{', .'.join(self.images)}")
        label = self.class_of(parts, key)
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

    def class_of(self, parts: dict[str, bytes], key: str) -> int:
        """-1: none."""
        if self.label not in parts:
            return -1
        try:
            label = int(parts[self.label])
        except ValueError as error:
            raise RecordError(
                "corrupt record", f"'{key}.{self.label}' is no number: {parts[self.label][:20]}"
            ) from error
        if not -1 <= label < 2**31:
            raise RecordError("corrupt record", f"'{key}.{self.label}' is {label}, not in -1 to 2^31 - 1")
        return label

    def texts(self, parts: dict[str, bytes], label: int, key: str) -> list[str]:
        plain = fields.decode(parts["txt"], f"'{key}.txt'").strip() if "txt" in parts and self.wants_txt else ""
        found = [plain] if plain else []
        if "json" in parts and self.fields and not (self.one_or_other and found):
            found += fields.captions(_json(parts["json"], key), self.fields)
        if not found and 0 <= label < len(self.class_names):
            found = [self.class_names[label]]
        if not found:
            raise RecordError("no caption", f"'{key}' has {_names(parts)} and no caption in them")
        return found


def read_sample(open_files: OpenFiles, path: str, start: int, end: int) -> tuple[str, dict[str, bytes]]:
    """(key, {extension: content}) of one sample. Raises RecordError."""
    if end - start > MAX_SAMPLE:
        raise RecordError("record too large", f"{end - start} bytes from byte {start} on, the limit is {MAX_SAMPLE}")
    data = open_files.read(path, start, end - start)
    key, parts = "", {}
    try:
        for member in members(io.BytesIO(data), len(data)):
            name = split_name(member.name) if allowed(member) else None
            if name is None:
                continue
            key = name[0]
            if name[1] in parts:
                raise RecordError("corrupt record", f"'{member.name}' is there twice")
            parts[name[1]] = data[member.data : member.data + member.size]
    except TarError as error:
        raise RecordError("unreadable record", f"in the {len(data)} bytes from byte {start} on, {error}") from error
    return key, parts


def _load_indexes(files: list[str], config: SourceConfig) -> list[TarIndex]:
    # In an order of its own, so that processes that start together share the work: they find what others have saved.
    order = random.SystemRandom().sample(range(len(files)), len(files))
    found: dict[int, TarIndex] = {}
    told = time.monotonic()
    with ThreadPoolExecutor(INDEXING_THREADS) as pool:
        loaded = pool.map(lambda number: load_index(files[number], config.data_dir), order)
        for number, index in zip(order, loaded, strict=True):
            found[number] = index
            if time.monotonic() > told + TELL_SECONDS:
                told = time.monotonic()
                logging.warning("Indexing the tars of %s: %d of %d", config.path, len(found), len(files))
    return [found[number] for number in range(len(files))]


def _json(data: bytes, key: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError("corrupt record", f"'{key}.json' is not JSON: {error}") from error


def _names(parts: dict[str, bytes]) -> str:
    return ", ".join(f".{name}" for name in sorted(parts)) or "no file"


def _class_names(files: list[Path]) -> tuple[str, ...]:
    for folder in (files[0].parent, files[0].parent.parent) if files else ():
        if (folder / CLASS_NAMES).is_file():
            return tuple((folder / CLASS_NAMES).read_text(encoding="utf-8").splitlines())
    return ()
