"""Folders that are named after the classes of the images in them: flowers/red_rose/1.jpg."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from absl import logging

from clipjax.data.labels import MAX_CLASSES, ClassNames, names_beside, names_in, names_of_texts, read_label
from clipjax.data.records import ManifestError, RecordError


class ClassFolderError(ManifestError):
    """A folder that is no class; the message names it."""


def class_folders(
    root: Path, folders: Iterable[str], class_names: str | Path | None = None, *, option: str = ""
) -> tuple[ClassNames, dict[str, int]]:
    """(class names, folder -> label), by the rule of clipjax.data.labels; "_" in a folder's name stands for a space.

    class_names: a file of names; None: root/classnames.txt. Without either, folders that are numbers are classes named
    by their numbers, and other folders are their own names. option: what a user sets to name a file, for the warning.
    Raises ClassFolderError for a folder that is no class of the file and, without one, for two folders of one class,
    and ManifestError for folders of which some are numbers and some are names.
    """
    names = names_in(class_names) if class_names else names_beside(root)
    spelled, from_folders = {folder: folder.replace("_", " ") for folder in folders}, not names.names
    if from_folders:
        try:
            read = [(read_label(name, f"folder '{folder}'"), f"folder '{folder}'") for folder, name in spelled.items()]
        except RecordError as error:
            raise ClassFolderError(f"{root}: {error}.") from error
        names = names_of_texts(read, str(root))
        if not names.names and read:
            largest = max(label if label is not None else -1 for label, _ in read)
            if largest >= MAX_CLASSES:
                raise ClassFolderError(f"{root}: folder '{largest}' is not the number of a class.")
            names = ClassNames(tuple(map(str, range(largest + 1))), f"the folders of {root}")
            logging.warning(
                "The class folders of %s are numbers, which the captions will contain: '%s'. Give the classes' names "
                "%s, one per line; the number is the line, counted from 0.", root, names.names[-1],
                option or f"in a file {root}/classnames.txt",
            )  # fmt: skip
    labels = {}
    for folder, name in spelled.items():
        try:
            labels[folder] = names.number(folder if folder in names.names else name, f"folder '{folder}'")
        except RecordError as error:
            raise ClassFolderError(f"{root}: {error}.") from error
        if labels[folder] < 0:
            raise ClassFolderError(f"{root}: folder '{folder}' is not the number of a class.")
    first: dict[int, str] = {}
    for folder, label in labels.items():
        if from_folders and (other := first.setdefault(label, folder)) != folder:
            raise ClassFolderError(
                f"{root}: folders '{other}' and '{folder}' are both class '{names.names[label]}'. Rename one, or put "
                "their images together."
            )
    return names, labels
