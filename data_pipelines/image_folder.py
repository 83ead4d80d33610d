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
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipjax.data.sources.fields import caption_lines
from clipjax.data.sources.folder import SIDECARS, Sidecars, image_files
from clipjax.files import TextFileError, decode_text
from data_pipelines import command
from data_pipelines.command import PipelineError, Skips
from data_pipelines.files import DEFAULT_SPLITS, Item, add_image_flags, split_by_share, write_items

FOLDERS = "folders"


def build(
    out: str | Path,
    *,
    images: str | Path,
    captions: str = "sidecar",
    template: Sequence[str] = ("a photo of a {}",),
    splits: str = DEFAULT_SPLITS,
    shorter_side: int = 0,
    licence: str = "",
    overwrite: bool = False,
) -> dict:
    """Writes records to `out`, returns the manifest.

    captions: "sidecar" (NAME.txt beside NAME.jpg) or "folders" (the first folder is the class name, and
    `template` makes captions of it). splits: shares, or "folders" for a first folder that names the split.
    Raises PipelineError for a missing folder, a template without {}, and when no image has a caption.
    """
    images = Path(images)
    if not images.is_dir():
        raise PipelineError(f"--images={images} is not a folder.")
    for text in template:
        if "{}" not in text:
            raise PipelineError(f"--template='{text}' has no {{}} where the class name belongs.")
    by_folder = splits == FOLDERS
    skips, listing, sidecars = Skips(), hashlib.sha256(), Sidecars()
    items, names = [], []
    for path in list_images(images, skips, sidecars):
        key = path.relative_to(images).as_posix()
        listing.update(f"{key}\0{path.stat().st_size}\n".encode())
        folders = key.split("/")[:-1]
        if by_folder and not folders:
            skips.add("in no split's folder", key)
            continue
        name, texts = "", ()
        if captions == FOLDERS:
            inner = folders[1:] if by_folder else folders
            name = inner[0].replace("_", " ") if inner else ""
            texts = tuple(text.replace("{}", name) for text in template) if name else ()
        else:
            texts = sidecar(path, sidecars, listing)
        if texts:
            items.append((key, path, texts, name))
            names.append(name)
        else:
            skips.add("in no class folder" if captions == FOLDERS else "no caption file, or an empty one", key)
    class_names = sorted(set(names) - {""})
    labels = {name: index for index, name in enumerate(class_names)}
    return write_items(
        Path(out),
        [Item(key, path, texts, labels.get(name)) for key, path, texts, name in items],
        split_of=(lambda key: key.split("/")[0]) if by_folder else split_by_share(splits),
        shorter_side=shorter_side,
        licence=licence,
        name=images.resolve().name,
        class_names=class_names,
        skips=skips,
        source={
            "pipeline": "image_folder",
            "listing_sha256": listing.hexdigest(),
            "captions": captions,
            "templates": list(template) if captions == FOLDERS else [],
            "splits": splits,
        },
        overwrite=overwrite,
    )


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("image_folder", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="the folder")
    parser.add_argument("--captions", choices=("sidecar", FOLDERS), default="sidecar", help="default %(default)s")
    parser.add_argument("--template", action="append", help='caption of a class, default "a photo of a {}"; repeatable')
    add_image_flags(parser)

    def build_with_default_template(template: list[str] | None, **flags: object) -> dict:
        return build(**flags, **({"template": template} if template else {}))

    command.run(build_with_default_template, parser, argv)


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
    for path in list(image_files(folder, follow_links=True, other=other)):
        yield folder / path


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
