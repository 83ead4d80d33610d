"""WebDataset tar files, and those of img2dataset with their statistics.

Files that share a name up to the first dot of its last part are one sample: 0001.jpg, 0001.txt, 0001.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.archives import tar_members
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers.paths import input_files, short_names
from data_pipelines.prepare.types import Example, Listing, Note, Unit

_TARS = (".tar", ".tar.gz", ".tgz")
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_TEXTS = ("txt", "caption", "text")


def units(options: Options) -> Listing:
    """A unit a tar."""
    files = input_files(options, _TARS)
    names = short_names(files)
    return Listing([Unit(i, file, "webdataset", (file,), (names[i], "")) for i, file in enumerate(files)])


def img2dataset_units(options: Options) -> Listing:
    """A unit a tar; beside it NAME_stats.json counts what img2dataset could not get. Raises PipelineError without."""
    listing = []
    for unit in units(options).units:
        stats = unit.name.removesuffix(".tar") + "_stats.json"
        if not Path(stats).is_file():
            raise PipelineError(
                f"{stats} is not there: img2dataset had not finished {unit.name}. Run it again, or read the tars that "
                "there are with --reader=webdataset."
            )
        listing.append(unit._replace(files=(unit.name, stats), payload=(unit.payload[0], stats)))
    return Listing(listing)


def read(unit: Unit, options: Options, note: Note) -> Iterator[Example]:
    name, stats = unit.payload
    if stats:
        _note_failures(Path(stats), note)
    sample: dict[str, bytes] = {}
    current = None
    members = tar_members(unit.files[0], lambda member: True, lambda cause, member: note(cause, name, member))
    for member in members:
        folder, _, last = member.name.rpartition("/")
        stem, _, kind = last.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != current:
            yield from _example(name, current, sample, options, note)
            current, sample = key, {}
        sample[kind.lower()] = member.data
    yield from _example(name, current, sample, options, note)


def _example(name: str, key: str | None, sample: dict[str, bytes], options: Options, note: Note) -> Iterator[Example]:
    """None or one. The key begins with the tar's name: img2dataset and others count within a tar."""
    if key is None:
        return
    image = next((sample[kind] for kind in _IMAGES if kind in sample), None)
    texts, label = _texts(sample, options)
    key = f"{_without_suffix(name)}/{key}"
    if image is None:
        note("no image", key, ", ".join(sample))
    elif texts is None:
        note("caption is not UTF-8 or JSON", key, "")
    else:
        yield Example(key, image, texts, label)


def _texts(sample: dict[str, bytes], options: Options) -> tuple[tuple[str, ...] | None, str]:
    """Captions: the text file, then the JSON's fields of --caption_columns, each text or a list; and the label."""
    try:
        texts = [sample[kind].decode("utf-8") for kind in _TEXTS if kind in sample]
        fields = json.loads(sample["json"]) if "json" in sample else {}
    except ValueError:
        return None, ""
    fields = fields if isinstance(fields, dict) else {}
    for column in options.caption_columns:
        value = fields.get(column)
        texts += [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    label = fields.get(options.label_column)
    return tuple(dict.fromkeys(texts)), label if isinstance(label, str) else ""


def _note_failures(path: Path, note: Note) -> None:
    try:
        status = json.loads(path.read_text(encoding="utf-8"))["status_dict"]
        failures = {str(cause): int(count) for cause, count in status.items() if cause != "success"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path} is no statistics file of img2dataset: {error!r}.") from error
    for cause, count in failures.items():
        note(f"not downloaded by img2dataset: {cause}", path.name, "", count)


def _without_suffix(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in reversed(_TARS) if name.endswith(suffix)), name)
