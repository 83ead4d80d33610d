"""The image files that annotations name: the folder in which their paths start, and whether all of them are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.records import ManifestError
from clipjax.data.sources.folder import one_spelling

# Beside a file of annotations: SugarCrepe's images are COCO's val2017, ARO's and Winoground's lie in images.
FOLDERS = ("", "images", "val2017")


def find_images(
    paths: Sequence[str], error: Callable[[int, str, str], ManifestError], folder: str, beside: Path
) -> tuple[Path, list[str]]:
    """(the folder in which the paths start, each image's path in it).

    A path may have no suffix where the file has one ("ex_0_img_0" for ex_0_img_0.png). Where the folder has no such
    path, leading folders are dropped from it, as many from all paths as from the first: annotations that were written
    on another machine name the folders of that machine.

    folder: the source's option, "" for `beside`, the annotations' folder, or its subfolder images or val2017, whichever
    has the first image. error: (number of a path, what is there, what is expected) -> the error to raise for it. Raises
    ManifestError for images that are missing, and for paths that lead out of the folder.
    """
    roots = [Path(folder)] if folder else [beside / name for name in FOLDERS]
    if folder and not roots[0].is_dir():
        raise ManifestError(f"The source's images='{folder}' is not a folder.")
    own = [_inside(path, number, error) for number, path in enumerate(paths)]
    listed = _Listings()
    first = own[0].split("/")
    places = ((root, drop) for drop in range(len(first)) for root in roots)
    place = next((place for place in places if listed.find(place[0], "/".join(first[place[1] :]))), None)
    if place is None:
        tried = " or ".join(str(root) for root in roots if root.is_dir())
        packed = next((root / "images.zip" for root in roots if (root / "images.zip").is_file()), None)
        cure = f"Unpack {packed}" if packed else "Set the source's images to the folder in which the paths start"
        raise error(0, paths[0], f"the path of an image in {tried}. {cure}, or copy the missing files")
    root, drop = place
    found = [listed.find(root, "/".join(path.split("/")[drop:])) for path in own]
    missing = [number for number, path in enumerate(found) if not path]
    if missing:
        more = f" ({len(missing)} of {len(paths)} are missing)" if missing[1:] else ""
        raise error(missing[0], paths[missing[0]], f"the path of an image in {root}{more}. Copy it again")
    of_own = dict(zip(own, found, strict=True))
    if len(set(of_own.values())) < len(of_own):
        first = {}  # the number of the path that has an image first
        number = next(n for n, path in enumerate(own) if own[first.setdefault(found[n], n)] != path)
        other = own[first[found[number]]]
        raise error(number, paths[number], f"another image than '{other}': both are {root / found[number]}")
    return root, [path for path in found if path]


class _Listings:
    """The files of folders, each folder listed once."""

    def __init__(self) -> None:
        self.names: dict[Path, set[str]] = {}

    def find(self, root: Path, path: str) -> str:
        """The path of a file below root, with the suffix that it lacks; "" where there is none."""
        folder, name = os.path.split(path)
        where = root / folder
        if where not in self.names:
            try:
                with os.scandir(where) as entries:
                    self.names[where] = {entry.name for entry in entries if not entry.is_dir()}
            except OSError:
                self.names[where] = set()
        names = self.names[where]
        has_suffix = name.lower().endswith(IMAGE_SUFFIXES)
        tried = (name,) if has_suffix else (name, *(name + suffix for suffix in IMAGE_SUFFIXES))
        return next((os.path.join(folder, each) for each in tried if name and each in names), "")


def _inside(path: str, number: int, error: Callable[[int, str, str], ManifestError]) -> str:
    """The path, relative. Raises what `error` makes for a URL and for a path with ".."."""
    plain = one_spelling(path)
    if "://" in plain:
        raise error(number, path, "the path of a file; URLs are not fetched")
    if ".." in PurePosixPath(plain).parts:
        raise error(number, path, "a path without '..', inside the folder of the images")
    if "\\" in plain and "/" not in plain:
        raise error(number, path, "a path with folders written with /")
    return plain.lstrip("/")
