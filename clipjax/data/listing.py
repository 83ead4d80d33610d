"""The files of a folder of images, and what captions they give."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from clipjax.config import ConfigError
from clipjax.data.records import ManifestError
from clipjax.data.sources.image_files import Sidecars, image_files


class Listing(NamedTuple):
    """The files in a folder and below it, as paths from the folder."""

    images: list[str]
    others: list[str]

    def of(self, suffix: str) -> list[str]:
        return [name for name in self.others if name.lower().endswith(suffix)]


def list_files(folder: Path) -> Listing:
    """All visible files. Raises ConfigError for a folder that cannot be listed."""
    others: list[str] = []
    try:
        return Listing(sorted(image_files(folder, other=others.append)), others)
    except ManifestError as error:
        raise ConfigError(f"--data={folder}: {error}") from error


def captions_of_images(listing: Listing) -> str:
    """What captions a folder of images has: "files" or "folders" (see FolderConfig); "" for neither.

    Files count where at least half of the images have one; folders where there are two or more.
    """
    sidecars, names = Sidecars(), set(listing.others)
    for name in (*listing.images, *listing.others):
        sidecars.add(name)
    beside = sum(bool(sidecars.find(image, names.__contains__)) for image in listing.images)
    if 2 * beside >= len(listing.images):
        return "files"
    return "folders" if not beside and len(class_folders_of(listing)) > 1 else ""


def class_folders_of(listing: Listing) -> set[str]:
    """The folders that images lie in."""
    return {image.split("/")[0] for image in listing.images if "/" in image}
