"""Sets that ask whether a model prefers an image's true caption over false ones that differ in little.

SugarCrepe, ARO and Winoground, as files of JSON beside images or as Parquet; docs/compositional_sets.md shows each one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from clipjax.config import SourceConfig
from clipjax.config.fields import ORDER, experiment, runtime
from clipjax.data.images.decode import open_image
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.annotated_images import find_images
from clipjax.data.sources.annotations import AnnotationRow, read_rows
from clipjax.data.sources.folder import MAX_IMAGE
from clipjax.data.sources.hard_negative_layouts import (
    Box,
    Example,
    Layout,
    check_same_layout,
    examples,
    layout_of,
)
from clipjax.data.sources.local_files import find_files, read_below
from clipjax.data.sources.parquet import ParquetConfig, ParquetSource, open_file
from clipjax.files import hidden

JSON, PARQUET = (".json", ".jsonl"), (".parquet",)


@dataclass(frozen=True)
class HardNegativesConfig(SourceConfig):
    """path: .json or .jsonl files, or Parquet files, by their folder, file or pattern ("data/*.json")."""

    name: str = "hard_negatives"
    split: str = experiment("", fixed=ORDER)  # "": all files
    # folder in which the paths of .json files start; "": the folder of the file, or images or val2017 in it
    images: str = runtime("", path="data")
    # The fields; "": told by their names (docs/compositional_sets.md).
    image_key: str = experiment("", fixed=ORDER)
    text_key: str = experiment("", fixed=ORDER)  # the true caption
    negative_key: str = experiment("", fixed=ORDER)  # false captions, texts or lists of them; several joined by commas
    label_key: str = experiment("", fixed=ORDER)  # the group that a record belongs to
    clip_boxes: bool = runtime(False)  # cut a box at the edge of its image, instead of refusing one that crosses it


class Entry(NamedTuple):
    """One record: an image and its captions."""

    image: str | int  # the path of the file, or the row of the Parquet files
    column: int  # of the images: 0, or 1 for the second image of a pair
    texts: tuple[str, ...]
    label: int
    key: str
    pair_id: int
    box: Box | None
    file: str
    position: int


class HardNegativesSource:
    """Records whose texts are the true caption and then the false ones.

    A record of Winoground, with two images, becomes two records with one pair_id. Each one's texts are its own caption
    and that of the other image. Where records name a group, such as ARO's relation, it is the label, and
    class_names are the names of the groups, sorted. Of several .json files without groups, each is a group with the
    file's name.

    All annotations are read, and all images looked for, when the source is opened. Raises ManifestError for files that
    are missing or contradict themselves: docs/compositional_sets.md lists what is refused.
    """

    has_false_captions = True  # only an evaluator that knows it may read them

    def __init__(self, config: HardNegativesConfig):
        self.config = config
        files = find_files(config, _suffixes(config))
        stems = [file.stem for file in files if file.suffix.lower() in JSON]
        if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
            names = " and ".join(str(file) for file in files if file.stem == twice)
            raise ManifestError(
                f"{names} have the same name, which names their group and their records. Name one of them."
            )
        self.rows: tuple[ParquetSource, ...] = ()
        self.root = Path()
        if files[0].suffix.lower() in PARQUET:
            found = self._open_parquet(files)
        else:
            found = self._open_json(files)
        names = sorted({example.group for _, example in found} - {""})
        numbers = {name: number for number, name in enumerate(names)}
        self.class_names = tuple(names)
        self.entries = _entries(found, numbers)
        if not self.rows:
            self._find_images(found)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self._entry(index)
        if isinstance(entry.image, int):
            image = self.rows[entry.column][entry.image]["image"]
        else:
            # The annotations' folder may be one of links, as a hub's cache is.
            file = (self.root / entry.image).resolve()
            image = read_below(file.parent, file.name, MAX_IMAGE)
        if entry.box:
            image = _crop(image, entry.box, self.config.clip_boxes, entry.key)
        texts, label, pair_id = list(entry.texts), entry.label, entry.pair_id
        return {"image": image, "texts": texts, "key": entry.key, "label": label, "pair_id": pair_id}

    def captions(self, index: int) -> list[str]:
        """The texts of a record, without reading its image."""
        return list(self._entry(index).texts)

    def where(self, index: int) -> tuple[str, int]:
        entry = self._entry(index)
        return entry.file, entry.position

    def read_files(self) -> list[str]:
        """The annotations, and the images that they name."""
        images = {str(self.root / entry.image) for entry in self.entries if isinstance(entry.image, str)}
        return sorted({str(entry.file) for entry in self.entries} | images)

    def _entry(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.entries[index]

    def _options(self) -> dict[str, str]:
        config = self.config
        return {
            "image": config.image_key,
            "true": config.text_key,
            "false": config.negative_key,
            "group": config.label_key,
        }

    def _open_json(self, files: Sequence[Path]) -> list[tuple[AnnotationRow, Example]]:
        found: list[tuple[AnnotationRow, Example]] = []
        layouts: list[tuple[str, Layout]] = []
        for file in files:
            rows = read_rows(file)
            fields = dict.fromkeys(name for row in rows for name in row.fields)
            layouts.append(
                (str(file), layout_of(fields, f"{file}, in any of its {len(rows)} records,", self._options()))
            )
            check_same_layout(layouts[0], layouts[-1])
            layout = layouts[-1][1]
            own = [(row, example) for row in rows for example in examples(row, layout)]
            if files[1:] and not layout.group:
                own = [(row, example._replace(group=file.stem)) for row, example in own]
            found += own
        _tell_dropped(found, layouts[0][1])
        return found

    def _open_parquet(self, files: Sequence[Path]) -> list[tuple[AnnotationRow, Example]]:
        with open_file(files[0]) as file:
            layout = layout_of(file.schema_arrow.names, str(files[0]), self._options())
        texts = [*layout.true, *layout.false]
        common = dict(path=self.config.path, split=self.config.split, text_key=",".join(texts), label_key="")
        self.rows = tuple(ParquetSource(ParquetConfig(image_key=image, **common)) for image in layout.images)
        found = []
        for path in self.rows[0].files:
            with open_file(path) as file:
                columns = [name for name in (*texts, layout.group) if name]
                if missing := [name for name in columns if name not in file.schema_arrow.names]:
                    raise ManifestError(f"{path} has no column '{missing[0]}', which {files[0]} has.")
                values = _read(file, columns, path)
            for position, fields in enumerate(values):
                row = AnnotationRow(path, str(position), position, fields)
                found += [(row, example) for example in examples(row, layout)]
        _tell_dropped(found, layout)
        return found

    def _find_images(self, found: Sequence[tuple[AnnotationRow, Example]]) -> None:
        """Sets the root, and each entry's path in it."""

        def error(number: int, value: str, expected: str) -> ManifestError:
            row, example = found[number]
            return row.error(example.image, value, expected)

        paths = [row.text(example.image) for row, example in found]
        root, places = find_images(paths, error, self.config.images, Path(found[0][0].file).parent)
        self.root = root.resolve()
        self.entries = [entry._replace(image=path) for entry, path in zip(self.entries, places, strict=True)]
        for (row, example), path, first in zip(found[1::2], places[1::2], places[::2], strict=False):
            if self.entries[0].pair_id >= 0 and path == first:
                raise row.error(example.image, row.value(example.image), "another image than the pair's first")


def _suffixes(config: HardNegativesConfig) -> tuple[str, ...]:
    """What is read of a folder: .json files where there are any, or else .parquet files."""
    folder = Path(config.path)
    inner = folder / config.split if config.split and (folder / config.split).is_dir() else folder
    there = {file.suffix.lower() for file in inner.iterdir() if not hidden(file.name)} if inner.is_dir() else set()
    return next((kind for kind in (JSON, PARQUET) if not there.isdisjoint(kind)), (*JSON, *PARQUET))


def _entries(found: Sequence[tuple[AnnotationRow, Example]], numbers: dict[str, int]) -> list[Entry]:
    """The records in their order; the image of each is the number of its row, until the files are found."""
    entries: list[Entry] = []
    row_number = -1
    for number, (row, example) in enumerate(found):
        first = not number or row is not found[number - 1][0]
        row_number += first
        paired = (number + 1 < len(found) and found[number + 1][0] is row) or not first
        entries.append(
            Entry(
                image=row_number,
                column=0 if first else 1,
                texts=example.texts,
                label=numbers.get(example.group, -1),
                key=f"{Path(row.file).stem}/{row.key}" + (f"/{example.image}" if paired else ""),
                pair_id=row_number if paired else -1,
                box=example.box,
                file=row.file,
                position=row.position,
            )
        )
    return entries


def _tell_dropped(found: Sequence[tuple[AnnotationRow, Example]], layout: Layout) -> None:
    """Logs how many false captions were dropped because they are the true one."""
    most = max(len(example.texts) for _, example in found)
    short = [row for row, example in found if len(example.texts) < most]
    if short and len(layout.false) > 1:
        logging.warning(
            "%d of %d records have false captions equal to the true one; these captions are left out. The first is %s",
            len(short), len(found), short[0].where,
        )  # fmt: skip


def _read(file: Any, columns: Sequence[str], path: str) -> list[dict[str, Any]]:
    try:
        rows = file.read(columns=list(columns), use_threads=False).to_pylist()
        return [{name: _text(value) for name, value in row.items()} for row in rows]
    except Exception as error:  # Arrow raises OSError, ArrowInvalid and others for damaged pages
        raise ManifestError(f"{path}: the columns {', '.join(columns)} cannot be read: {error}") from error


def _text(value: Any) -> Any:
    """Bytes as the UTF-8 text that they are: Spark and others write Parquet's texts as binary."""
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _crop(data: bytes, box: Box, clip: bool, key: str) -> bytes:
    """The part of an image in the box, as PNG. Raises RecordError for a box outside the image."""
    image = open_image(data)
    right, bottom = box.x + box.width, box.y + box.height
    if right > image.width or bottom > image.height:
        outside = box.x >= image.width or box.y >= image.height
        if outside or not clip:
            cure = "" if outside else "; set the source's clip_boxes=True to cut boxes at the image's edge"
            raise RecordError(
                "box outside the image",
                f"record '{key}': the box is {box.width} x {box.height} at ({box.x}, {box.y}), but the image is "
                f"{image.width} x {image.height}{cure}",
            )
    buffer = io.BytesIO()
    image.crop((box.x, box.y, min(right, image.width), min(bottom, image.height))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
