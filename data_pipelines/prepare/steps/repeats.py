"""Repetitions: keys used twice, one image in several records, images that look alike, captions used too often."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from clipjax.data.records import RecordError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.steps.hashes import bands, text_hash
from data_pipelines.prepare.types import Note, Row

# Largest difference in any cell of the grid, in levels of 255. JPEG at quality 30 and 10% more brightness stay below.
_SAME_COLOUR = 28

Votes = Iterator[tuple[str, tuple]]


def same_key(row: Row, options: Options) -> Iterator[tuple[str, tuple]]:
    yield row.key, (row.rank, row.id, row.captions, row.pixels_sha, row.label)


def same_pixels(row: Row, options: Options) -> Iterator[tuple[str, tuple]]:
    yield row.pixels_sha, (row.rank, row.id, row.captions, row.pixels_sha, row.label)


def key_votes(members: Sequence[tuple], options: Options) -> Votes:
    """The first record of a key stays, and takes the captions of those with its image; the others are left out."""
    (rank, first, _, pixels, _), *others = members
    for other, member, captions, other_pixels, label in others:
        same = options.merge != "off" and other_pixels == pixels
        yield member, ("out", "key used again, captions taken over" if same else "key used again", rank[0])
        if same:
            yield first, ("captions", other, *captions)
            yield first, ("label", other, label)


def merge_votes(members: Sequence[tuple], options: Options) -> Votes:
    """The first record with these pixels stays and takes the captions of the others."""
    (first_rank, first, *_), *others = members
    for other, member, captions, _, label in others:
        yield member, ("out", "same image, captions taken over", first_rank[0])
        yield first, ("captions", other, *captions)
        yield first, ("label", other, label)


def merge(row: Row, votes: Sequence[tuple], options: Options, note: Note) -> Row:
    out = [vote for vote in votes if vote[0] == "out"]
    if out:
        raise RecordError(out[0][1], f"as {out[0][2]}")
    merged = {text.lower(): (text, score) for text, score in row.captions}
    for kind, _, *captions in votes:
        for text, score in captions if kind == "captions" else ():
            merged.setdefault(text.lower(), (text, score))
    if len(merged) > len(row.texts):
        note("captions of the same image taken over", row.key, " | ".join(text for text, _ in merged.values()))
    labels = dict.fromkeys(label for kind, _, label in [("label", "", row.label), *_labels(votes)] if label != "")
    if len(labels) > 1:
        note("the same image has several labels, the first is kept", row.key, " | ".join(map(str, labels)))
    return dataclasses.replace(row.with_captions(merged.values()), label=next(iter(labels), ""))


def _labels(votes: Sequence[tuple]) -> list[tuple]:
    return [vote for vote in votes if vote[0] == "label"]


def looks(row: Row, options: Options) -> Iterator[tuple[str, tuple]]:
    for band in bands(row.image_hash, options.near_duplicates):
        yield band, (row.rank, row.id, row.image_hash, row.colours)


def looks_votes(members: Sequence[tuple], options: Options) -> Votes:
    """Leaves out a row if one of smaller rank has a hash within near_duplicates bits and the same colours.

    That holds whether or not the other row stays, so that the first of a chain of look-alikes stays in any order.
    """
    hashes = np.array([bits for _, _, bits, _ in members], np.uint64)
    grids = np.array([list(bytes.fromhex(colours)) for *_, colours in members], np.int16)
    for place, (_, member, _, _) in enumerate(members[1:], 1):
        distances = np.bitwise_count(hashes[:place] ^ hashes[place])
        candidates = np.flatnonzero(distances <= options.near_duplicates)
        off = np.abs(grids[candidates] - grids[place]).max(-1, initial=0)
        near = candidates[off <= _SAME_COLOUR]
        if len(near):
            yield member, (int(distances[near[0]]), members[near[0]][0][0])


def drop_looks(row: Row, votes: Sequence[tuple], options: Options, note: Note) -> Row:
    if votes:
        bits, key = votes[0]
        raise RecordError("looks like another image", f"{bits} bits from {key}")
    return row


def said(row: Row, options: Options) -> Iterator[tuple[str, tuple]]:
    for text in dict.fromkeys(map(text_hash, row.texts)):
        yield text, (row.rank, row.id, text)


def said_votes(members: Sequence[tuple], options: Options) -> Votes:
    for _, member, text in members[options.same_caption :]:
        yield member, (text,)


def drop_said(row: Row, votes: Sequence[tuple], options: Options, note: Note) -> Row:
    """The row without captions that enough rows of smaller rank have."""
    gone = {vote[0] for vote in votes}
    return without(row, [text_hash(text) in gone for text in row.texts], "caption used by others", note)


def without(row: Row, out: Sequence[bool], cause: str, note: Note) -> Row:
    """The row without the captions marked in `out`. Raises RecordError where none is left."""
    if not any(out):
        return row
    stays = [not gone for gone in out]
    if not any(stays):
        raise RecordError(cause, " | ".join(row.texts))
    note(f"caption left out: {cause}", row.key, " | ".join(t for t, gone in zip(row.texts, out, strict=True) if gone))
    return row.with_captions(caption for caption, stay in zip(row.captions, stays, strict=True) if stay)
