"""A folder of images as records, with captions from text files beside them or from folder names.

    python -m data_pipelines.image_folder --images=photos --out=data/photos
        photos/beach/1.jpg captioned by photos/beach/1.txt, one caption per line
    python -m data_pipelines.image_folder --images=flowers --captions=folders --template="a photo of a {}" \\
        --template="{}" --out=data/flowers
        flowers/red_rose/1.jpg has the class name "red rose" and the captions "a photo of a red rose", "red rose"
    python -m data_pipelines.image_folder --images=imagenet --captions=folders --splits=folders --out=data/imagenet
        imagenet/train/goldfish/1.jpg is in the split "train"

Images without a caption and images that cannot be read are left out and counted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clipjax.data.labels import ClassNames, are_numbers
from clipjax.data.sources import class_folders as sources
from clipjax.data.sources.fields import caption_lines
from clipjax.data.sources.image_files import SIDECARS, Sidecars, image_files
from clipjax.data.sources.local_files import SPLITS
from clipjax.files import TextFileError, decode_text
from clipjax.storage import as_path
from data_pipelines import command
from data_pipelines.command import PipelineError, Skips
from data_pipelines.files import DEFAULT_SPLITS, Item, add_image_flags, split_by_share, write_items
from data_pipelines.input_content import content_fields, file_state
from data_pipelines.tables import add_class_names_flag, names_in_source

FOLDERS = "folders"


def build(
    out: str | Path,
    *,
    images: str | Path,
    captions: str = "sidecar",
    template: Sequence[str] = ("a photo of a {}",),
    class_names: str | Path | None = None,
    splits: str = DEFAULT_SPLITS,
    shorter_side: int = 0,
    licence: str = "",
    overwrite: bool = False,
) -> dict:
    """Writes records to `out`, returns the manifest.

    captions: "sidecar" (NAME.txt beside NAME.jpg) or "folders" (the first folder is the class name, and
    `template` makes captions of it). class_names: a file of names for "folders", see class_folders.
    splits: shares, or "folders" for a first folder that names the split.
    Raises PipelineError for a missing folder, a template without {}, and when no image has a caption.
    """
    images, out = Path(images), as_path(out)
    if not images.is_dir():
        raise PipelineError(f"--images={images} is not a folder.")
    for text in template:
        if "{}" not in text:
            raise PipelineError(f"--template='{text}' has no {{}} where the class name belongs.")
    if class_names and captions != FOLDERS:
        raise PipelineError("--class_names needs --captions=folders: with caption files, images have no class.")
    by_folder = splits == FOLDERS
    skips, listing, sidecars = Skips(), hashlib.sha256(), Sidecars()
    items: list = []
    for path in list_images(images, skips, sidecars):
        key = path.relative_to(images).as_posix()
        listing.update(f"{key}\0{file_state(path)[0]}\n".encode())
        folders = key.split("/")[:-1]
        if by_folder and not folders:
            skips.add("in no split's folder", key)
            continue
        if captions == FOLDERS:
            inner = folders[1:] if by_folder else folders
            found, cause = inner[:1], "in no class folder"
        else:
            found, cause = sidecar(path, sidecars, listing), "no caption file, or an empty one"
        if found:
            items.append((key, path, found))
        else:
            skips.add(cause, key)
    names = ClassNames()
    if captions == FOLDERS:
        _refuse_splits(images, {folder for _, _, (folder,) in items})
        names, labels = class_folders(images, dict.fromkeys(folder for _, _, (folder,) in items), class_names)
        items = [
            (key, path, tuple(text.replace("{}", names.names[labels[folder]]) for text in template), labels[folder])
            for key, path, (folder,) in items
        ]
    else:
        items = [(*item, None) for item in items]
    return write_items(
        out,
        [Item(key, path, tuple(texts), label) for key, path, texts, label in items],
        split_of=(lambda key: key.split("/")[0]) if by_folder else split_by_share(splits),
        shorter_side=shorter_side,
        licence=licence,
        name=images.resolve().name,
        class_names=names.names,
        skips=skips,
        source={
            "pipeline": "image_folder",
            "listing_sha256": listing.hexdigest(),
            **content_fields(out, [(key, path) for key, path, *_ in items], overwrite),
            "captions": captions,
            "templates": list(template) if captions == FOLDERS else [],
            **names_in_source(names, are_numbers(names.names)),
            "splits": splits,
        },
        overwrite=overwrite,
    )


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("image_folder", __doc__)
    parser.add_argument("--images", type=command.local_path, required=True, help="the folder")
    parser.add_argument("--captions", choices=("sidecar", FOLDERS), default="sidecar", help="default %(default)s")
    parser.add_argument("--template", action="append", help='caption of a class, default "a photo of a {}"; repeatable')
    add_class_names_flag(parser)
    add_image_flags(parser)

    def build_with_default_template(template: list[str] | None, **flags: object) -> dict:
        return build(**flags, **({"template": template} if template else {}))

    command.run(build_with_default_template, parser, argv)


def class_folders(
    root: Path, folders: Iterable[str], class_names: str | Path | None
) -> tuple[ClassNames, dict[str, int]]:
    """(class names, folder -> label), by the rule of clipjax.data.labels; "_" in a folder's name stands for a space.

    See clipjax.data.sources.class_folders. Raises PipelineError for folders that are no class of the file, and
    ManifestError for folders of which some are numbers and some are names.
    """
    try:
        return sources.class_folders(root, folders, class_names, option="with --class_names=FILE")
    except sources.ClassFolderError as error:
        raise PipelineError(f"--images={error}") from error


def _refuse_splits(images: Path, classes: set[str]) -> None:
    """Raises PipelineError for folders of classes that are all named after splits."""
    if classes and classes <= set(SPLITS):
        raise PipelineError(
            f"--images={images}: the folders {', '.join(sorted(classes))} are named after splits, not classes. Set "
            "--splits=folders to take them as splits, or --images to one of them."
        )


def list_images(folder: Path, skips: Skips, sidecars: Sidecars) -> Iterator[Path]:
    """The image files in a folder and below it, linked folders included, in a fixed order.

    Other files go to skips, apart from caption files, which go to sidecars.
    """

    def other(path: str) -> None:
        sidecars.add(str(folder / path))
        suffix = Path(path).suffix.lower()
        if suffix not in SIDECARS:
            skips.add(f"not an image file ({suffix or 'no suffix'})", str(folder / path))

    # All of them first: a caption file may come after its image.
    paths = [folder / path for path in image_files(folder, follow_links=True, other=other)]
    for path in paths:
        sidecars.add(str(path))
    yield from paths


def sidecar(image: Path, sidecars: Sidecars, listing: hashlib._Hash | None = None) -> tuple[str, ...]:
    """The captions in the file beside an image. listing: a hash that is updated with the file's bytes."""
    path = sidecars.find(str(image), os.path.isfile)
    if not path:
        return ()
    data = Path(path).read_bytes()
    if listing:
        listing.update(data)
    try:
        return tuple(caption_lines(decode_text(data, path)))
    except TextFileError as error:
        raise PipelineError(str(error)) from error


if __name__ == "__main__":
    main()
