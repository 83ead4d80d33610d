"""WebDataset tar files, and those of img2dataset with their statistics.

A tar is streamed once, compressed or not. Samples, and what counts as their image, are those of training's source
(clipjax.data.sources.webdataset).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from clipjax.data.labels import ClassNames, names_in, read_label
from clipjax.data.records import RecordError
from clipjax.data.sources.tar_captions import SIDECARS
from clipjax.data.sources.wds_layout import caption_lines, has_caption_lines
from clipjax.data.sources.webdataset import (
    Parts,
    WebDatasetConfig,
    find_image,
    label_value,
    names_of,
    samples,
)
from clipjax.files import decode_text
from data_pipelines.archives import tar_members
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers.captions import captions
from data_pipelines.prepare.readers.paths import input_files, short_names
from data_pipelines.prepare.types import Example, Listing, Note, Unit

_TARS = (".tar", ".tar.gz", ".tgz")
_TEXTS = tuple(dict.fromkeys(("txt", "caption", "text", *SIDECARS)))
_UNSORTED = "files of one key apart: the tar is not sorted; unpack it into a folder, pack that with tar --sort=name"


def units(options: Options) -> Listing:
    """A unit is a tar, with the file of class names if there is one."""
    files = input_files(options, _TARS)
    names, classes = short_names(files), names_in(options.class_names) if options.class_names else names_of(files)
    others = (classes.path,) if classes.names else ()
    return Listing(
        [Unit(i, file, "webdataset", (file, *others), (names[i], "", *others)) for i, file in enumerate(files)],
        list(classes.names),
    )


def img2dataset_units(options: Options) -> Listing:
    """A unit is a tar and its NAME_stats.json, which counts failed downloads. Raises PipelineError without one."""
    listing = []
    found = units(options)
    for unit in found.units:
        stats = unit.name.removesuffix(".tar") + "_stats.json"
        if not Path(stats).is_file():
            raise PipelineError(
                f"{stats} is not there: img2dataset had not finished {unit.name}. Run it again, or read the tars that "
                "there are with --reader=webdataset."
            )
        name, _, *classes = unit.payload
        listing.append(unit._replace(files=(unit.name, stats, *classes), payload=(name, stats, *classes)))
    return Listing(listing, found.class_names)


def read(unit: Unit, options: Options, note: Note) -> Iterator[Example]:
    """Keys begin with the tar's name, because img2dataset and others count within a tar."""
    name, stats, *classes = unit.payload
    names = names_in(classes[0]) if classes else ClassNames()
    if stats:
        _note_failures(Path(stats), note)
    files = tar_members(unit.files[0], lambda member: True, lambda cause, member: note(cause, name, member))
    lines = has_caption_lines(unit.files[0])
    seen: dict[str, bool] = {}  # key -> whether it had an image
    for _, members in itertools.groupby(files, lambda member: member.part):
        for key, parts in samples((member.name, member.data) for member in members):
            if len(dict(parts)) < len(parts):
                note("two files of one name", f"{name}/{key}", ", ".join(extension for extension, _ in parts))
                continue
            has_image = find_image(dict(parts)) is not None
            if seen.setdefault(key, has_image) != has_image:
                note(_UNSORTED, name, key)
            yield from _example(f"{_without_suffix(name)}/{key}", dict(parts), options, names, note, lines)


def _example(key: str, parts: Parts, options: Options, names: ClassNames, note: Note, lines: bool) -> Iterator[Example]:
    """None or one."""
    image, texts = find_image(parts), _texts(key, parts, options, note, lines)
    if image is None:
        note("no image", key, ", ".join(parts))
    elif texts is None:
        note("caption is not UTF-8 or JSON", key, "")
    else:
        try:
            value, where = label_value(parts, key, options.label_column or WebDatasetConfig.label_key)
            label = names.number(value, where) if names.names else read_label(value, where)
        except RecordError as error:
            note(error.cause, key, str(error))
            return
        yield Example(key, image, texts, "" if label in (None, -1) else label)


def _texts(key: str, parts: Parts, options: Options, note: Note, lines: bool) -> tuple[str, ...] | None:
    """The text file and the fields of the .json that --caption_columns names. lines: the .txt has a caption a line.

    They stay as they are here: the step "captions" cleans them and tells what it changed. None: they cannot be read.
    """
    try:
        texts = caption_lines(parts["txt"], "txt") if lines and "txt" in parts else []
        texts += [decode_text(parts[kind], kind) for kind in _TEXTS if kind in parts and not (lines and kind == "txt")]
        fields = json.loads(parts["json"]) if "json" in parts else {}
    except (ValueError, RecordError):
        return None
    texts += captions(fields if isinstance(fields, dict) else {}, key, options, note)
    return tuple(dict.fromkeys(texts))


def _note_failures(path: Path, note: Note) -> None:
    try:
        status = json.loads(path.read_text(encoding="utf-8"))["status_dict"]
        failures = {str(cause): int(count) for cause, count in status.items() if cause != "success"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path} is not a statistics file of img2dataset: {error!r}.") from error
    for cause, count in failures.items():
        note(f"not downloaded by img2dataset: {cause}", path.name, "", count)


def _without_suffix(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in reversed(_TARS) if name.endswith(suffix)), name)
