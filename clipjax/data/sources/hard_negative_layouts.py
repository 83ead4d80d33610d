"""Where records of a set of hard negatives have their images, captions, groups and boxes, told by the fields' names.

One image, its true caption and one or more false ones:

    filename, caption, negative_caption                                                 SugarCrepe
    image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption, and
        relation_name or attributes                                                     ARO, Visual Genome
    image, correct_caption, hard_text_1, hard_text_2, ...                               ARO, the order of words

Two images with a caption each, and each caption false for the other image:

    image_0, image_1, caption_0, caption_1, and collapsed_tag                           Winoground
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.data.records import ManifestError
from clipjax.data.sources.annotations import AnnotationRow

IMAGE = ("image_path", "filename", "file_name", "image", "images")
TRUE = ("true_caption", "correct_caption", "positive_caption", "caption")
FALSE = ("false_caption", "false_captions", "negative_caption", "negative_captions", "hard_texts")
NUMBERED_FALSE = re.compile(r"(?:hard_text|false_caption|negative_caption)_(\d+)")
GROUP = ("relation_name", "attributes", "collapsed_tag")
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
PAIR_IMAGES, PAIR_CAPTIONS = ("image_0", "image_1"), ("caption_0", "caption_1")


class Layout(NamedTuple):
    """The fields that a set's records have."""

    images: tuple[str, ...]  # one; or two, in a set of pairs
    true: tuple[str, ...]  # the caption of each image
    false: tuple[str, ...]  # of texts or lists of texts; () in a set of pairs
    group: str = ""  # what the mean over groups groups by; "": nothing
    box: tuple[str, ...] = ()  # BOX, where the image is cropped first


class Box(NamedTuple):
    """A part of an image, in whole pixels."""

    x: int
    y: int
    width: int
    height: int


class Example(NamedTuple):
    """What a record says about one of its images."""

    image: str  # the field that has it
    texts: tuple[str, ...]  # the true caption, then the false ones
    group: str  # "": none
    box: Box | None


def layout_of(names: Iterable[str], where: str, options: Mapping[str, str]) -> Layout:
    """The layout of records with these fields.

    options: image, true, false and group -> the field that the user names, several of false ones joined by commas, or
    "" to tell it by its name. Raises ManifestError naming what is missing. where: names the data in errors.
    """
    names = list(names)
    chosen = {what: [key.strip() for key in value.split(",") if key.strip()] for what, value in options.items()}
    for what, keys in chosen.items():
        for key in keys:
            if key not in names:
                option = OPTIONS[what]
                raise ManifestError(
                    f"{where} has no field '{key}', which the source's {option} names; it has {', '.join(names)}."
                )
    group = (chosen["group"] or [name for name in GROUP if name in names] or [""])[0]
    if not chosen["image"] and any(name in names for name in PAIR_IMAGES):
        return Layout(PAIR_IMAGES, PAIR_CAPTIONS, (), group)
    image = chosen["image"] or [name for name in IMAGE if name in names][:1]
    true = chosen["true"] or [name for name in TRUE if name in names][:1]
    false = chosen["false"] or _false(names)
    for what, found, known in (("image", image, IMAGE), ("true", true, TRUE), ("false", false, FALSE)):
        if not found:
            raise ManifestError(
                f"{where} has no field for {MEANING[what]}; it has {', '.join(names) or 'no field'}. Expected "
                f"{' or '.join(known)}, or another field that the source's {OPTIONS[what]} names."
            )
    box = BOX if any(name in names for name in BOX) else ()
    return Layout(tuple(image[:1]), tuple(true[:1]), tuple(false), group, box)


OPTIONS = {"image": "image_key", "true": "text_key", "false": "negative_key", "group": "label_key"}
MEANING = {"image": "the image", "true": "the true caption", "false": "false captions"}


def examples(row: AnnotationRow, layout: Layout) -> list[Example]:
    """One example of a record, or two of a pair. Raises ManifestError for a record that contradicts its layout."""
    group = _group(row, layout.group) if layout.group else ""
    true = [row.text(field) for field in layout.true]
    if len(layout.images) == 2:
        if true[0] == true[1]:
            raise row.error(layout.true[1], true[1], f"another caption than {layout.true[0]} has")
        texts = [(true[0], true[1]), (true[1], true[0])]
        return [Example(image, own, group, None) for image, own in zip(layout.images, texts, strict=True)]
    false = [(field, text) for field in layout.false for text in row.texts(field)]
    # The shuffled words of a short caption may be in their old order; then the others still tell right from wrong.
    different = [text for _, text in false if text != true[0]]
    if not different:
        raise row.error(false[0][0], false[0][1], f"another caption than {layout.true[0]} has")
    return [Example(layout.images[0], (true[0], *different), group, _box(row) if layout.box else None)]


def check_same_layout(first: tuple[str, Layout], other: tuple[str, Layout]) -> None:
    """Raises ManifestError where two files of one set have different fields."""
    if first[1] != other[1]:
        fields = [", ".join(filter(None, (*one.images, *one.true, *one.false, one.group))) for _, one in (first, other)]
        raise ManifestError(
            f"{first[0]} has the fields {fields[0]}, but {other[0]} has {fields[1]}. Name one of them in path, and "
            "read the other as a set of its own."
        )


def _false(names: Sequence[str]) -> list[str]:
    numbered = sorted((int(match[1]), name) for name in names if (match := NUMBERED_FALSE.fullmatch(name)))
    return [name for name in FALSE if name in names][:1] or [name for _, name in numbered]


def _group(row: AnnotationRow, field: str) -> str:
    """The group's name; of a list of texts, as ARO's attributes are, they joined by "_"."""
    value: Any = row.value(field)
    parts = value if isinstance(value, list) and value else [value]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not all(isinstance(part, str) and part.strip() for part in parts):
        raise row.error(field, value, "the name of a group, or a list of names")
    return "_".join(part.strip() for part in parts)


def _box(row: AnnotationRow) -> Box:
    """The record's box, rounded to whole pixels. Raises ManifestError for one that is empty or begins below 0."""
    box = Box(*(round(row.number(field)) for field in BOX))
    for field, value in zip(BOX[:2], box[:2], strict=True):
        if value < 0:
            raise row.error(field, value, "a pixel of the image, 0 or more")
    for field, value in zip(BOX[2:], box[2:], strict=True):
        if value < 1:
            raise row.error(field, value, "a side of at least one pixel")
    return box
