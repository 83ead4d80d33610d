"""Tiny sets in the layout of CLIP_benchmark's WebDatasets, as they lie on people's disks.

    folder = write_classification(root, "vtab/cifar10")         # root/wds_vtab-cifar10
    WebDatasetConfig(path=str(folder), split="test")

Every image is a flat colour of its own, which `colour` gives; keys are s0000000, s0000001, ...
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("cat", "dog", "red bird")
TEMPLATES = ("a photo of a {c}.", "art of the {c}.")
FORMATS = {"webp": {"format": "webp", "lossless": True}, "png": {"format": "png"}, "jpg": {"format": "jpeg"}}
FORMATS["jpeg"] = FORMATS["jpg"]

Sample = Mapping[str, bytes]  # extension -> content


def folder_of(root: str | Path, name: str) -> Path:
    """ROOT/wds_NAME, with "-" for the "/" of a name such as vtab/cifar10."""
    return Path(root) / f"wds_{name.replace('/', '-')}"


def colour(number: int) -> tuple[int, int, int]:
    """The colour of image `number`; images 0 to 4095 have different ones."""
    return (number * 37 % 256, number * 91 % 256, number // 256 * 16)


def image(number: int, extension: str = "png", size: int = 8) -> bytes:
    """Image `number`, encoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour(number)).save(buffer, **FORMATS[extension])
    return buffer.getvalue()


def npy(row: object, dtype: object = np.int64) -> bytes:
    """An array as numpy.save writes it."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(row, dtype))
    return buffer.getvalue()


def captions_txt(captions: Sequence[str]) -> bytes:
    """A caption a line, with a newline inside one as backslash-n."""
    return "\n".join(caption.replace("\n", "\\n") for caption in captions).encode()


def write_tar(path: Path, samples: Iterable[tuple[str, Sample]]) -> None:
    """A tar of samples (key, {extension: content})."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, parts in samples:
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_split(folder: Path, split: str, samples: Sequence[Sample], shards: int = 2) -> None:
    """folder/split/{0.tar, 1.tar, ..., nshards.txt}, the samples in order, dealt out evenly, in place of old ones."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for tar in (folder / split).glob("*.tar"):
        tar.unlink()
    keyed = [(f"s{number:07d}", parts) for number, parts in enumerate(samples)]
    bounds = np.linspace(0, len(keyed), shards + 1).astype(int).tolist()
    for shard, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
        write_tar(folder / split / f"{shard}.tar", keyed[first:last])
    (folder / split / "nshards.txt").write_text(f"{shards}\n", encoding="utf-8")


def write_lists(folder: Path, names: Sequence[str], templates: Sequence[str], kind: str = "") -> None:
    """The text files beside the splits; empty ones are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"classnames.txt": names, "zeroshot_classification_templates.txt": templates, "dataset_type.txt": [kind]}
    for name, lines in files.items():
        if any(lines):
            (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_classification(
    root: str | Path,
    name: str = "cats",
    *,
    split: str = "test",
    names: Sequence[str] = NAMES,
    templates: Sequence[str] = TEMPLATES,
    labels: Sequence[int] | None = None,
    shards: int = 2,
    extension: str = "png",
) -> Path:
    """A classification set, a label for each image; None: three images of each class, in turn. Returns its folder."""
    folder = folder_of(root, name)
    write_lists(folder, names, templates)
    labels = [number % len(names) for number in range(3 * len(names))] if labels is None else labels
    samples = [{extension: image(number, extension), "cls": str(label).encode()} for number, label in enumerate(labels)]
    write_split(folder, split, samples, shards)
    return folder


def write_multilabel(
    root: str | Path,
    name: str = "voc2007_multilabel",
    *,
    split: str = "test",
    names: Sequence[str] = NAMES,
    templates: Sequence[str] = TEMPLATES,
    rows: Sequence[Sequence[int]] = ((1, 0, 0), (0, 1, 1), (0, 0, 0), (1, 1, 1), (0, 0, 1)),
    shards: int = 2,
    extension: str = "png",
) -> Path:
    """A multilabel set, a row of 0 and 1 for each image. Returns its folder."""
    folder = folder_of(root, name)
    write_lists(folder, names, templates, "multilabel")
    samples = [{extension: image(number, extension), "npy": npy(row)} for number, row in enumerate(rows)]
    write_split(folder, split, samples, shards)
    return folder


def write_retrieval(
    root: str | Path,
    name: str = "flickr8k",
    *,
    split: str = "test",
    captions: Sequence[Sequence[str]] = (("a cat", "one cat\nsits"), ("two dogs",), ("a bird", "a red bird", "birds")),
    shards: int = 2,
    extension: str = "png",
) -> Path:
    """A retrieval set, the captions of each image. Returns its folder."""
    folder = folder_of(root, name)
    write_lists(folder, (), (), "retrieval")
    samples = [
        {extension: image(number, extension), "txt": captions_txt(texts)} for number, texts in enumerate(captions)
    ]
    write_split(folder, split, samples, shards)
    return folder
