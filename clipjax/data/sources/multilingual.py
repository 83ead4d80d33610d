"""Images with captions in many languages: XM3600, XTD, Flickr30k-200 and others, one language at a time.

crossmodal3600_captions-de.json     {"image_paths": ["xm3600/images/1.jpg", ...], "annotations": ["...", ...]}
captions.jsonl                      {"image/key": "1", "de": {"caption": ["...", ...]}, "en": ..., ...} a line
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from clipjax.config import SourceConfig, nearest
from clipjax.config.fields import ORDER, experiment, runtime
from clipjax.data.records import ManifestError
from clipjax.data.sources.annotated_images import find_images
from clipjax.data.sources.annotations import AnnotationRow, read_json, read_rows, shown
from clipjax.data.sources.folder import MAX_IMAGE
from clipjax.data.sources.local_files import read_below
from clipjax.files import hidden

PLACE = "{language}"  # in a path, stands for the language
PATHS, CAPTIONS = "image_paths", "annotations"
IMAGE_KEY, CAPTION = "image/key", "caption"  # of XM3600's own captions.jsonl


@dataclass(frozen=True)
class MultilingualConfig(SourceConfig):
    """path: a folder of files NAME-LANGUAGE.json, or one file; "{language}" in it stands for the language."""

    name: str = "multilingual"
    split: str = experiment("", fixed=ORDER)  # not used: a file is read whole
    language: str = experiment("", fixed=ORDER)  # as the files write it: "de", "deu_Latn"
    # folder in which the paths of the images start; "": the folder of the file, or images or val2017 in it
    images: str = runtime("", path="data")


class Entry(NamedTuple):
    """One image with its captions in the language."""

    image: str  # its path
    texts: tuple[str, ...]
    pair_id: int
    position: int


class MultilingualSource:
    """Images with their captions in config.language, in the order of the file.

    An image that the file names more than once is several records with one pair_id, so that retrieval counts the
    captions of all of them as right. All annotations are read, and all images looked for, when the source is opened.
    Raises ManifestError for a language that is not there, lists of different lengths, captions that are missing or
    empty, and images that are missing.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, config: MultilingualConfig):
        self.file = str(_file(config))
        rows = _rows(Path(self.file), config.language)
        field, captions_field = rows[0].image, rows[0].captions
        texts = [tuple(row.row.texts(captions_field)) for row in rows]
        paths = [row.row.text(field) for row in rows]

        def error(number: int, value: str, expected: str) -> ManifestError:
            return rows[number].row.error(field, value, expected)

        root, places = find_images(paths, error, config.images, Path(self.file).parent)
        self.root = root.resolve()
        counts = collections.Counter(places)
        first = {place: number for number, place in reversed(list(enumerate(places)))}
        if len(counts) < len(places):
            logging.warning(
                "%s names %d images in %d records: records of one image match each other",
                self.file, len(counts), len(places),
            )  # fmt: skip
        self.entries = [
            Entry(place, own, first[place] if counts[place] > 1 else -1, number)
            for number, (place, own) in enumerate(zip(places, texts, strict=True))
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self._entry(index)
        # The annotations' folder may be one of links, as a hub's cache is.
        file = (self.root / entry.image).resolve()
        return {
            "image": read_below(file.parent, file.name, MAX_IMAGE),
            "texts": list(entry.texts),
            "key": f"{Path(self.file).stem}/{entry.position}",
            "label": -1,
            "pair_id": entry.pair_id,
        }

    def captions(self, index: int) -> list[str]:
        """The texts of a record, without reading its image."""
        return list(self._entry(index).texts)

    def where(self, index: int) -> tuple[str, int]:
        return self.file, self._entry(index).position

    def read_files(self) -> list[str]:
        """The annotations, and the images that they name."""
        return [self.file, *sorted({str(self.root / entry.image) for entry in self.entries})]

    def _entry(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.entries[index]


def languages_in(path: str | Path) -> list[str]:
    """The languages that a source's path has, sorted: those of its files, or of its one file. Raises ManifestError."""
    path = Path(path)
    if PLACE in path.name:
        before, after = path.name.split(PLACE, 1)
        return sorted(
            file.name[len(before) : len(file.name) - len(after)]
            for file in _listed(path.parent)
            if file.name.startswith(before) and file.name.endswith(after) and len(file.name) > len(before + after)
        )
    if path.is_dir():
        return sorted({language for file in _listed(path) if (language := _language_of(file))})
    if path.suffix.lower() == ".jsonl":
        return _languages_of_rows(read_rows(path))
    annotations = _document(path)[CAPTIONS]
    return sorted(annotations) if isinstance(annotations, Mapping) else []


def _file(config: MultilingualConfig) -> Path:
    """The file that has the language's captions. Raises ManifestError."""
    path, language = Path(config.path), config.language
    if PLACE in config.path:
        if PLACE not in path.name:
            raise ManifestError(f"The source's path '{path}' has {PLACE} in a folder; expected it in the file's name.")
        if not language:
            raise ManifestError(f"The source's language is empty, and its path '{path}' needs one.{_known(path)}")
        path = Path(config.path.replace(PLACE, language))
        if not path.is_file():
            raise ManifestError(f"{path} does not exist.{_known(config.path, language)}")
        return path
    if not path.is_dir():
        if not path.is_file():
            raise ManifestError(f"'{path}' is neither a folder nor a file of captions.")
        own = _language_of(path)
        if path.suffix.lower() == ".json" and language and own and not path.stem.endswith(f"-{language}"):
            if not isinstance(_document(path)[CAPTIONS], Mapping):
                raise ManifestError(
                    f"{path} is named after the language '{own}', but the source's language is '{language}'. Set the "
                    f"language to '{own}', or path to the folder."
                )
        return path
    if not language:
        raise ManifestError(f"The source's language is empty, and {path} is a folder of several.{_known(path)}")
    files = [file for file in _listed(path) if file.stem.endswith(f"-{language}")]
    if not files:
        raise ManifestError(f"{path} has no file NAME-{language}.json.{_known(path, language)}")
    if files[1:]:
        choices = " or ".join(f"'{path}/{file.stem.removesuffix(language)}{PLACE}.json'" for file in files)
        raise ManifestError(
            f"{path} has {len(files)} files of the language '{language}': "
            f"{', '.join(file.name for file in files)}. Set the source's path to {choices}."
        )
    return files[0]


def _listed(folder: Path) -> list[Path]:
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise ManifestError(f"{folder} cannot be listed: {error.strerror}") from error
    return [file for file in names if file.suffix.lower() == ".json" and not hidden(file.name)]


def _language_of(file: Path) -> str:
    """The language in a file's name, "" for a name without one."""
    return file.stem.partition("-")[2]


def _known(path: str | Path, language: str = "") -> str:
    there = languages_in(path)
    if not there:
        return " There are no files NAME-LANGUAGE.json."
    hint = nearest(language, there).split(" Known")[0] if language else ""
    return f"{hint} The languages there are {', '.join(there)}."


class _Row(NamedTuple):
    row: AnnotationRow
    image: str  # the field of the image's path
    captions: str  # the field of the captions


def _rows(path: Path, language: str) -> list[_Row]:
    if path.suffix.lower() == ".jsonl":
        return _rows_of_lines(path, language)
    document = _document(path)
    annotations = document[CAPTIONS]
    field = CAPTIONS
    if isinstance(annotations, Mapping):
        if language not in annotations:
            raise ManifestError(
                f"{path}, field '{CAPTIONS}', has no language '{language}'. The languages there are "
                f"{', '.join(sorted(annotations)) or 'none'}."
            )
        field, annotations = f"{CAPTIONS}/{language}", annotations[language]
    paths = document[PATHS]
    for name, value in ((PATHS, paths), (field, annotations)):
        if not isinstance(value, list):
            raise ManifestError(f"{path}, field '{name}': found {shown(value)}, expected a list, an element an image.")
    if len(paths) != len(annotations):
        raise ManifestError(
            f"{path}: '{PATHS}' has {len(paths)} elements, but '{field}' has {len(annotations)}. Expected the captions "
            "of each image."
        )
    if not paths:
        raise ManifestError(f"{path} has no records.")
    return [
        _Row(AnnotationRow(str(path), str(number), number, {PATHS: image, field: texts}), PATHS, field)
        for number, (image, texts) in enumerate(zip(paths, annotations, strict=True))
    ]


def _rows_of_lines(path: Path, language: str) -> list[_Row]:
    """The rows of XM3600's own captions.jsonl."""
    found = read_rows(path)
    languages = _languages_of_rows(found)
    if language not in languages:
        raise ManifestError(
            f"{path} has no language '{language}'. The languages there are {', '.join(languages) or 'none'}."
        )
    field = f"{language}/{CAPTION}"
    rows = []
    for row in found:
        of_language = row.value(language)
        if not isinstance(of_language, dict) or CAPTION not in of_language:
            raise row.error(language, of_language, f"an object with the field '{CAPTION}'")
        fields = {IMAGE_KEY: row.value(IMAGE_KEY), field: of_language[CAPTION]}
        rows.append(_Row(row._replace(fields=fields), IMAGE_KEY, field))
    return rows


def _languages_of_rows(rows: Sequence[AnnotationRow]) -> list[str]:
    names = {name for row in rows for name, value in row.fields.items() if isinstance(value, dict) and CAPTION in value}
    return sorted(names)


def _document(path: Path) -> Mapping[str, Any]:
    """The object of a .json file. Raises ManifestError for one without image paths and captions."""
    document = read_json(path)
    expected = f"an object with the lists '{PATHS}' and '{CAPTIONS}'"
    if not isinstance(document, dict):
        raise ManifestError(f"{path}: found {shown(document)}, expected {expected}.")
    for name in (PATHS, CAPTIONS):
        if name not in document:
            raise ManifestError(f"{path} has no field '{name}'; it has {', '.join(document)}. Expected {expected}.")
    return document
