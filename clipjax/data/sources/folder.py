"""Image files as a source: a folder with captions beside the images, or a table of paths and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from absl import logging

from clipjax.config import SourceConfig
from clipjax.config.fields import ORDER, experiment, runtime
from clipjax.data.labels import CAUSE, NAMES_FILE, ClassNames, Label, names_beside, names_of_texts, read_label
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources.class_folders import class_folders
from clipjax.data.sources.csv_tables import table_rows
from clipjax.data.sources.fields import MAX_CAPTION, caption_lines, captions, decode, pick
from clipjax.data.sources.image_files import Sidecars, folder_of_split, image_files, tell_unread
from clipjax.data.sources.local_files import read_below
from clipjax.data.sources.tables import TABLES, Columns
from clipjax.files import hidden

MAX_IMAGE = 256 << 20  # bytes of a file


@dataclass(frozen=True)
class FolderConfig(SourceConfig):
    """path: a folder of images, or a .csv, .tsv or .jsonl table, which is read with the options from data_dir on."""

    name: str = "folder"
    # of a folder: the files beside the images, or the classes that the images' folders are named after
    captions: Literal["files", "folders"] = experiment("files", fixed=ORDER)
    data_dir: str = runtime("", path="data")  # where a table's paths start; "": the table's folder
    image_key: str = experiment("image", fixed=ORDER)  # column of paths
    # columns of captions, joined by commas; .jsonl: also lists; "": none, the class's name is the caption
    text_key: str = experiment("caption", fixed=ORDER)
    label_key: str = experiment("label", fixed=ORDER)  # column of class numbers or names; "": none
    # what separates the fields of a .csv or .tsv: one character or "tab"; "": detected from the header
    delimiter: str = experiment("", fixed=ORDER)


class Fault(NamedTuple):
    """Why an entry cannot be used; the arguments of RecordError."""

    cause: str
    message: str


class Entry(NamedTuple):
    """An image and what a table says about it. The caption file beside an image is read together with the image."""

    path: str  # from the root
    position: int  # line of the table, or number of the image
    texts: tuple[str, ...] | None = None  # None: in the caption file
    label: int = -1
    fault: Fault | None = None  # of the table's row


class FolderSource:
    """Images of config.path, one record each.

    A folder (or its subfolder named config.split, if there is one): all images in it and below, with NAME.txt beside
    NAME.jpg, one caption a line (see Sidecars). With captions="folders", an image's class is the folder below that one,
    CLASS/NAME.jpg or CLASS/.../NAME.jpg, and its caption is the name of the class; images of a class are repeats (their
    pair_id is the label). A table: the rows that name one image become one record. An image
    without captions takes the name of its class.

    Labels are read by the rule of clipjax.data.labels; class names are those of a file classnames.txt in the table's
    folder, or else the labels that are texts, sorted. Rows of one image with different labels are a bad record.

    The list of images is kept in memory, about 300 bytes each. Nothing outside the folder is read: absolute paths,
    "..", and links that lead out are bad records. Raises ManifestError for a folder, table or column that is missing,
    and for a table that cannot be read.
    """

    def __init__(self, config: FolderConfig):
        path = Path(config.path)
        self.class_names: tuple[str, ...] = ()
        self.sidecars, self.of_classes = Sidecars(), config.captions == "folders" and path.is_dir()
        if path.suffix.lower() in TABLES and path.is_file():
            self.table, root = str(path), Path(config.data_dir) if config.data_dir else path.parent
            self.entries, names = _table_entries(path, config)
            self.class_names = names.names
        elif path.is_dir():
            self.table, root = "", folder_of_split(path, config.split)
            others: list[str] = []
            images = sorted(image_files(root, other=others.append))
            for name in (*images, *others):
                self.sidecars.add(name)
            self.sidecars.names.clear()
            tell_unread(root, others)
            self.entries = [Entry(name, number) for number, name in enumerate(images)]
            if self.of_classes:
                self.entries, self.class_names = _class_entries(self.entries, root, path)
        elif not path.exists():
            looked = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
            raise ManifestError(f"'{path}' does not exist{looked}. Expected a folder of images or a table.")
        else:
            raise ManifestError(f"'{path}' is neither a folder of images nor a {', '.join(TABLES)} table.")
        self.root = root.resolve()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = self.entries[index]
        if entry.fault:
            raise RecordError(*entry.fault)
        texts = self.sidecar(entry.path) if entry.texts is None else list(entry.texts)
        if not texts and 0 <= entry.label < len(self.class_names):
            texts = [self.class_names[entry.label]]
        if not texts:
            raise RecordError("no caption", f"'{entry.path}' has no caption")
        return {
            "image": self.read(entry.path, MAX_IMAGE),
            "texts": texts,
            "key": entry.path,
            "label": entry.label,
            "pair_id": entry.label if self.of_classes else -1,
        }

    def where(self, index: int) -> tuple[str, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = self.entries[index]
        return (self.table, entry.position) if self.table else (str(self.root / entry.path), 0)

    def read_files(self) -> list[str]:
        """The table and its images; [] for a folder, all of whose files count."""
        if not self.table:
            return []
        return [self.table, *(str(self.root / entry.path) for entry in self.entries if not entry.fault)]

    def sidecar(self, image: str) -> list[str]:
        """The captions in the file beside an image. Raises RecordError."""
        path = self.sidecars.find(image, lambda path: (self.root / path).exists())
        return caption_lines(decode(self.read(path, MAX_CAPTION), f"'{path}'")) if path else []

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of a file below the root. Raises RecordError for one outside it, above limit, or not readable."""
        return read_below(self.root, path, limit)


def _class_entries(entries: list[Entry], root: Path, whole: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """(entries with labels, class names) of images in class folders; whole: the folder of all splits."""
    folder_of = [entry.path.split("/")[0] if "/" in entry.path else "" for entry in entries]
    beside = next((file for file in (root / NAMES_FILE, whole / NAMES_FILE) if file.is_file()), None)
    classes = sorted({*folder_of} - {""})
    names, labels = class_folders(root, classes, beside)
    if beside is None:
        _tell_empty(root, classes)
    labelled = [
        entry._replace(label=labels[folder], texts=(names.names[labels[folder]],))
        if folder
        else entry._replace(fault=Fault("in no class folder", f"'{entry.path}' lies in {root} itself"))
        for entry, folder in zip(entries, folder_of, strict=True)
    ]
    return labelled, names.names


def _tell_empty(root: Path, classes: Sequence[str]) -> None:
    """Warns of folders that would be classes if they had images: with fewer classes, accuracies are higher."""
    empty = sorted({path.name for path in root.iterdir() if path.is_dir() and not hidden(path.name)} - {*classes})
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        logging.warning("These folders in %s hold no images, so they are not classes: %s", root, shown)


def one_spelling(path: str) -> str:
    """A table's path as all rows of an image shall spell it: "./a//b.jpg " -> "a/b.jpg"; URLs and ".." stay."""
    if "://" in path:
        return path.strip()
    parts = path.strip().split("/")
    kept = [part for number, part in enumerate(parts) if part not in ("", ".") or not (number or part)]
    return "/".join(kept)


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """A row's value in a column, or in a field inside one ("meta/class"); None where it is missing, or column is ""."""
    if not column:
        return None
    return row[column] if column in row else pick(row, column)


class _LabelOfRow(NamedTuple):
    value: Any  # as it is in the table
    label: Label
    where: str


def _table_entries(table: Path, config: FolderConfig) -> tuple[list[Entry], ClassNames]:
    """(entries in the order of the table, class names). Raises ManifestError."""
    texts: dict[str, list[str]] = {}
    first: dict[str, Entry] = {}  # by path; a row that cannot be used is an entry of its own
    labels: dict[str, list[_LabelOfRow]] = {}
    text_keys = tuple(key.strip() for key in config.text_key.split(",") if config.text_key and not config.prompts)
    unset = config.label_key == FolderConfig.label_key
    columns = Columns(config.image_key, text_keys, config.label_key, unset, config.delimiter)
    for row in table_rows(table, columns):
        path = row.values.get(config.image_key)
        path = one_spelling(path) if isinstance(path, str) else ""
        fault = Fault("corrupt record", f"{row.fault} {row.detail}".strip()) if row.fault else None
        own_texts: list[str] = []
        value, where = value_of(row.values, config.label_key), f"label of line {row.line}"
        try:
            own_texts = captions(row.values, ",".join(text_keys))
            label = read_label(value, where)
        except RecordError as error:
            fault = fault or Fault(error.cause, str(error))
        if fault or not path:
            fault = fault or Fault("no image path", "the row names no image")
            first[f"\0{row.line}"] = Entry(path, row.line, fault=fault)
            continue
        first.setdefault(path, Entry(path, row.line))
        texts.setdefault(path, []).extend(own_texts)
        if label is not None:
            labels.setdefault(path, []).append(_LabelOfRow(value, label, where))
    names = names_beside(table.parent)
    if not names.names:
        names = names_of_texts(((row.label, row.where) for rows in labels.values() for row in rows), str(table))
    entries = []
    for path, entry in first.items():
        if not entry.fault:
            entry = entry._replace(texts=tuple(dict.fromkeys(texts[path])))
            try:
                entry = entry._replace(label=_one_label(labels.get(path, []), names))
            except RecordError as error:
                entry = entry._replace(fault=Fault(error.cause, f"'{path}': {error}"))
        entries.append(entry)
    return entries, names


def _one_label(rows: list[_LabelOfRow], names: ClassNames) -> int:
    """The label that all rows of an image agree on, -1 without one. Raises RecordError."""
    for row in rows:
        if row.label != rows[0].label:
            raise RecordError(CAUSE, f"{rows[0].where} is '{rows[0].value}', {row.where} is '{row.value}'")
    return names.number(rows[0].value, rows[0].where) if rows else -1
