"""WebDataset tars as a source: read where they lie, in any order, without unpacking."""

from __future__ import annotations

import contextlib
import io
import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging

from clipjax.config import SourceConfig
from clipjax.config.fields import ORDER, experiment, runtime
from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.labels import ClassNames, names_beside, one_list_of_names
from clipjax.data.records import RecordError
from clipjax.data.sources.bucket_files import BucketFiles, bucket_files
from clipjax.data.sources.fields import pick
from clipjax.data.sources.local_files import OpenFiles, find_files
from clipjax.data.sources.tar_captions import SIDECARS, other_choice, parse_json, sample_texts, text_keys
from clipjax.data.sources.tar_findings import refuse_cut, tell
from clipjax.data.sources.tar_format import TarError, allowed, members, printable, split_name
from clipjax.data.sources.tar_index import TarIndex, index_path, key_hash, load_index
from clipjax.data.sources.wds_layout import (
    CAPTIONS,
    CLASSES,
    PROBED,
    SEVERAL_CLASSES,
    caption_lines,
    metadata,
    read_layout,
    read_targets,
)
from clipjax.storage import as_path

IMAGES = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
MAX_SAMPLE = 256 << 20  # bytes
INDEXING_THREADS = 8  # for disks and networks that answer slowly
PROGRESS_SECONDS = 30

Parts = dict[str, bytes]  # extension -> content


@dataclass(frozen=True)
class WebDatasetConfig(SourceConfig):
    """path: tars, by their folder, file or pattern ("shards/{00000..00012}.tar")."""

    name: str = "webdataset"
    # where the indexes are kept; "": beside the tars, and those of tars in a bucket in config.data.cache_dir
    data_dir: str = runtime("", path="data")
    # extensions of the image, joined by commas, the first that there is; "": those of all image formats. An extension
    # is all that follows the first dot of a file's name, such as "seg.png"
    image_key: str = experiment("", fixed=ORDER)
    # extensions ("txt", "en.txt") and fields of the .json, joined by commas; "": the .txt, or without one
    # CAPTION_FIELDS of the .json, or one of SIDECARS
    text_key: str = experiment("", fixed=ORDER)
    # extension of the file with the number or the name of the class; else a field of the .json
    label_key: str = experiment("cls", fixed=ORDER)


class WebDatasetSource:
    """The samples of one or many tars (see local_files.find_files), each with an image and captions.

    Labels are read by the rule of clipjax.data.labels; class names are those of classnames.txt, which lies beside the
    tars or in the folder above. A sample without captions takes the name of its class. Reading a sample is one read of
    the tar; it is a bad record unless all its files have the key that the index has for it. Sets in CLIP_benchmark's
    layout are read as its files say (clipjax.data.sources.wds_layout): they give `task` and `templates`, and records
    of a multilabel set have "targets", uint8 [C]. Raises ManifestError for tars that are missing, cut, damaged,
    compressed, or unsorted.
    """

    def __init__(self, config: WebDatasetConfig):
        self.images = tuple(map(_extension, re.split("[,;]", config.image_key))) if config.image_key else IMAGES
        self.text_keys = text_keys(config.text_key)
        self.label = config.label_key
        self.index_folder = config.data_dir
        files, self.layout = read_layout(find_files(config, (".tar",), buckets=True), config)
        self.task, self.templates = self.layout.task, self.layout.templates
        self.files = [str(file) for file in files]
        self.bucket = bucket_files(self.files, config.path)
        indexes = _load_indexes(self.files, config, self.bucket)
        self.indexes = [(index.spans, index.keys) for index in indexes]
        self.starts = np.cumsum([0, *(len(index.keys) for index in indexes)])
        self.refused = sum(index.refused for index in indexes)
        if self.task:
            refuse_cut(self.files, indexes)
        tell(config.path, self.files, indexes, self.bucket)
        self.names = ClassNames() if self.task == CAPTIONS else names_of(self.files)
        self.class_names = self.names.names
        self.open_files = self.bucket or OpenFiles()
        self.needed = self.layout.needed(_extension(config.label_key), config.text_key, WebDatasetConfig.label_key)
        self.width = self.layout.check(self._first(), self.needed, len(self.class_names), self.names.origin)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        key, parts = self.sample(index)
        image = find_image(parts, self.images)
        if image is None:
            other = other_choice(parts, "image_key", IMAGES, self.images)
            raise RecordError(
                "no image", f"'{key}' has {_names(parts)}, none of them .{', .'.join(self.images)}{other}"
            )
        if self.task == SEVERAL_CLASSES:
            return {"image": image, "key": key, "label": -1, "pair_id": -1, **self.targets(parts, key)}
        label = self.class_of(parts, key)
        texts = self.texts(parts, label, key)
        more = metadata(parts) if self.task == CLASSES else {}
        return {"image": image, "texts": texts, "key": key, "label": label, "pair_id": -1, **more}

    def sample(self, index: int) -> tuple[str, Parts]:
        """(key, files) of a sample. Raises RecordError."""
        file, number = self.find(index)
        path, (spans, keys) = self.files[file], self.indexes[file]
        start, end = spans[number].tolist()
        return read_sample(self.open_files, path, start, end, int(keys[number]), self.index_folder)

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Reads records from a bucket at the same time; those of local tars need no such help."""
        if self.bucket:
            found = [self.find(index) for index in indices]
            spans = [(self.files[file], *self.indexes[file][0][number].tolist()) for file, number in found]
            self.bucket.fetch_ahead((path, start, end - start) for path, start, end in spans)

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
        texts = sample_texts(parts, self.text_keys, key, caption_lines if self.task == CAPTIONS else None)
        if not texts and 0 <= label < len(self.class_names):
            texts = [self.class_names[label]]
        if not texts:
            other = other_choice(parts, "text_key", ("txt", "text", "caption"), self.text_keys or ("txt", *SIDECARS))
            raise RecordError("no caption", f"'{key}' has {_names(parts)} and no caption in them{other}")
        return texts

    def class_of(self, parts: Parts, key: str) -> int:
        """The sample's label, -1: none. Raises RecordError.

        In CLIP_benchmark's layout, a whole number is a line of the class names even where another name is that number.
        """
        value, where = label_value(parts, key, self.label)
        if self.task and isinstance(value, bytes) and re.fullmatch(rb"\s*[0-9]{1,9}\s*", value):
            value = int(value)
        return self.names.number(value, where)

    def targets(self, parts: Parts, key: str) -> dict[str, Any]:
        """{"targets": uint8 [C], "texts": the names of the classes that the image has, or one empty text}.

        Raises RecordError.
        """
        if self.needed not in parts:
            raise RecordError("no targets", f"'{key}' has {_names(parts)}, no .{self.needed}")
        row = read_targets(parts[self.needed], f"'{key}.{self.needed}'", self.width)
        texts = [self.class_names[line] for line in np.flatnonzero(row)] if self.class_names else []
        return {"targets": row, "texts": texts or [""]}

    def _first(self) -> list[tuple[str, Parts]]:
        """The first samples of a set in CLIP_benchmark's layout that can be read, each with its place."""
        found = []
        for index in range(min(PROBED, len(self)) if self.task else 0):
            with contextlib.suppress(RecordError):
                key, parts = self.sample(index)
                found.append((f"'{key}' in {self.where(index)[0]}", parts))
        return found


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
                yield printable(current), parts
            current, parts = key, []
        parts.append((printable(extension), content))
    if parts:
        yield printable(current), parts


def label_value(parts: Parts, key: str, label_key: str) -> tuple[Any, str]:
    """(the sample's label as it is in the tar, where it is): of the file with the extension label_key, or the .json.

    None where there is none; the .json is not read for the default "cls". Raises RecordError for a .json that is not
    JSON.
    """
    if (extension := _extension(label_key)) in parts:
        return parts[extension], f"label '{key}.{extension}'"
    if "json" in parts and label_key not in ("", WebDatasetConfig.label_key):
        return pick(parse_json(parts["json"], f"'{key}.json'"), label_key), f"label '{label_key}' of '{key}.json'"
    return None, ""


def names_of(tars: Sequence[str]) -> ClassNames:
    """The class names in a classnames.txt in the folder of the tars or the one above. Raises ManifestError.

    Tars of several folders must have the same names.
    """
    folders = dict.fromkeys(as_path(tar).parent for tar in tars)
    return one_list_of_names(names_beside(folder, folder.parent) for folder in folders)


def find_image(parts: Parts, extensions: Iterable[str] = IMAGES) -> bytes | None:
    """The file with the first of these extensions that the sample has."""
    return next((parts[extension] for extension in extensions if extension in parts), None)


def read_sample(
    open_files: OpenFiles | BucketFiles, path: str, start: int, end: int, key_of_index: int, index_folder: str = ""
) -> tuple[str, Parts]:
    """(key, parts) of the sample in bytes start..end of a tar, whose key_hash is key_of_index. Raises RecordError.

    A tar that was written over since it was indexed has other files there. They are refused, whichever they are, unless
    they are one whole sample of that key.
    """
    if end - start > MAX_SAMPLE:
        raise RecordError("record too large", f"{end - start} bytes from byte {start} on, the limit is {MAX_SAMPLE}")
    data = open_files.read(path, start, end - start)
    keys, parts, last, part = set(), {}, 0, 0
    try:
        for member in members(io.BytesIO(data), len(data)):
            last, part = member.data + member.size, member.part
            split = split_name(member.name) if allowed(member) else None
            if split is None:
                continue
            keys.add(split[0])
            extension = printable(split[1])
            if extension in parts and len(keys) == 1 and not part:
                raise RecordError("corrupt record", f"'{printable(split[0])}.{extension}' is there twice")
            parts[extension] = data[member.data : last]
    except TarError as error:
        message = f"in the {len(data)} bytes from byte {start} on, {error}: damaged, or changed since it was indexed"
        raise RecordError("unreadable record", message) from error
    if [*map(key_hash, keys)] != [key_of_index] or last != len(data) or part:
        found = f"files of {', '.join(sorted(map(printable, keys)))}" if keys else "no file"
        raise RecordError(
            "changed tar",
            f"{path} has {found} in bytes {start} to {end}, not the sample that its index has there: the tar has "
            f"changed since. Start again to index it; if that does not help, remove {index_path(path, index_folder)}",
        )
    return printable(keys.pop()), parts


def _load_indexes(files: list[str], config: WebDatasetConfig, bucket: BucketFiles | None) -> list[TarIndex]:
    # Each process goes in a random order, so that processes that start together share the work: each finds indexes
    # that others have saved.
    order = random.SystemRandom().sample(range(len(files)), len(files))
    indexes: dict[int, TarIndex] = {}
    told = time.monotonic()
    with ThreadPoolExecutor(INDEXING_THREADS) as pool:
        loaded = pool.map(lambda number: load_index(files[number], config.data_dir, bucket), order)
        for number, index in zip(order, loaded, strict=True):
            indexes[number] = index
            if time.monotonic() > told + PROGRESS_SECONDS:
                told = time.monotonic()
                logging.warning("Indexing the tars of %s: %d of %d", config.path, len(indexes), len(files))
    return [indexes[number] for number in range(len(files))]


def _extension(key: str) -> str:
    """ ".SEG.png" -> "seg.png"."""
    return key.strip().removeprefix(".").lower()


def _names(parts: Parts) -> str:
    return ", ".join(f".{name}" for name in sorted(parts)) or "no file"
