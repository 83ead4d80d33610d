"""Image files in folders: which are listed, the folder of a split, and the caption file beside an image."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging

from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.records import ManifestError
from clipjax.data.sources.local_files import split_in
from clipjax.files import hidden

SIDECARS = (".txt", ".caption")  # suffixes of caption files


class Sidecars:
    """Finds the caption file of an image: NAME.txt, NAME.caption, NAME.jpg.txt or NAME.jpg.caption beside NAME.jpg.

    The suffix may have capitals if the file was told with `add`, as image_files does. Of images that differ in their
    suffix, such as NAME.jpg and NAME.png, `add` knows too: NAME.txt may be the other's, so NAME.jpg.txt comes first.
    """

    def __init__(self) -> None:
        self.capitals: dict[str, str] = {}  # path with a small suffix -> path
        self.names: set[str] = set()  # of images, without their suffix, until the listing is complete
        self.shared: set[str] = set()  # those of several images

    def add(self, path: str) -> None:
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in SIDECARS and suffix != suffix.lower():
            self.capitals[stem + suffix.lower()] = path
        elif suffix.lower() in IMAGE_SUFFIXES:
            (self.shared if stem in self.names else self.names).add(stem)

    def find(self, image: str, exists: Callable[[str], bool]) -> str:
        """The path of the image's caption file, "" without one. exists: whether there is a file of this path."""
        stem = os.path.splitext(image)[0]
        for name in (image, stem) if stem in self.shared else (stem, image):
            for path in (f"{name}{suffix}" for suffix in SIDECARS):
                if exists(path):
                    return path
                if path in self.capitals:
                    return self.capitals[path]
        return ""


def image_files(
    root: Path, *, follow_links: bool = False, other: Callable[[str], None] = lambda path: None
) -> Iterator[str]:
    """Paths from root of the files with an image's suffix, at any depth: each folder's own files first, by name.

    Hidden files and folders (clipjax.files.hidden) are left out.

    follow_links: enter linked folders too, except those that lead to a folder above them. other: called with the path
    of every other file. Raises ManifestError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ManifestError(f"{error.filename} cannot be listed: {error.strerror}") from error

    above = {os.fspath(root): frozenset([_identity(root)])}  # folder that is yet to be listed -> it and those above it
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=follow_links):
        folders[:] = sorted(name for name in folders if not hidden(name))
        if follow_links:
            entered = above.pop(folder)
            inside = {name: _identity(os.path.join(folder, name)) for name in folders}
            folders[:] = [name for name in folders if inside[name] not in entered]
            above |= {os.path.join(folder, name): entered | {inside[name]} for name in folders}
        inner = os.path.relpath(folder, root)
        for name in sorted(name for name in names if not hidden(name)):
            path = name if inner == "." else f"{inner}/{name}"
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield path
            else:
                other(path)


def _identity(folder: str | Path) -> tuple[int, int]:
    """Equal for two paths of one folder; (-1, -1) for a folder that has gone."""
    try:
        state = os.stat(folder)
    except OSError:
        return (-1, -1)
    return (state.st_dev, state.st_ino)


def folder_of_split(folder: Path, split: str) -> Path:
    """The subfolder of the split's name, or the folder itself.

    Raises ManifestError where the folder has subfolders named after other splits only, and where it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            inner = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries if not hidden(entry.name)}
    except OSError as error:
        raise ManifestError(f"{folder} cannot be listed: {error.strerror}") from error
    if split and (folder / split).is_dir():
        images = [name for name in inner if not inner[name] and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        if images:
            logging.warning(
                "%d images in %s itself, such as %s, are not read, only those in its folder '%s', the split",
                len(images), folder, min(images), split,
            )  # fmt: skip
        return folder / split
    others = sorted(name for name in inner if inner[name] and split_in(name))
    # One folder such as "test shots" may be anything.
    surely = {split_in(name) for name in others}
    if split and (surely.intersection(name.lower().rstrip("0123456789") for name in others) or len(surely) > 1):
        raise ManifestError(
            f"{folder} has no folder '{split}' for the split of this name, only {', '.join(others)}. Set split to one "
            "of these, or to '' to read all images in it and below."
        )
    return folder


def tell_unread(root: Path, files: Sequence[str]) -> None:
    """Warns of files that are neither images of a format that is read nor caption files."""
    suffixes = collections.Counter(os.path.splitext(file)[1].lower() or "no suffix" for file in files)
    unread = [f"{count} {suffix}" for suffix, count in suffixes.most_common() if suffix not in SIDECARS]
    if unread:
        more = f" and {len(unread) - 5} more suffixes" if unread[5:] else ""
        logging.warning("Files in %s that are not read: %s%s", root, ", ".join(unread[:5]), more)
