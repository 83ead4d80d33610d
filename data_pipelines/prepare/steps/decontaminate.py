"""Removes images, or captions, of evaluation sets from the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipjax.config import SourceConfig
from clipjax.data.images.decode import open_image
from clipjax.data.records import RecordError, read_manifest
from clipjax.data.sources import open_source
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.steps.hashes import bands, distance, image_hash, text_hash
from data_pipelines.prepare.steps.repeats import without
from data_pipelines.prepare.types import Note, Row

_AT_A_TIME = 512  # records of an evaluation set that one worker hashes
_FIRST = ("", -1, -1)  # ranks before every row


def references(options: Options) -> Iterator[tuple[str, str, int, int]]:
    """Pieces of the evaluation sets, each "FOLDER" or "FOLDER:SPLIT": (folder, split, first record, last + 1).

    Raises ManifestError for a folder without records or without the split.
    """
    for name in options.decontaminate:
        folder, _, split = name.partition(":")
        for one in [split] if split else read_manifest(folder)["splits"]:
            size = len(open_source(SourceConfig(path=folder, split=one)))
            yield from ((folder, one, i, min(i + _AT_A_TIME, size)) for i in range(0, size, _AT_A_TIME))


def reference_members(piece: tuple[str, str, int, int], options: Options) -> Iterator[tuple[str, tuple]]:
    folder, split, start, stop = piece
    source = open_source(SourceConfig(path=folder, split=split))
    for index in range(start, stop):
        record = source[index]
        where = f"{folder}:{split} {record['key']}"
        if options.decontaminate_by != "caption":
            # A damaged record stops the run: otherwise the image it should keep out would come in unnoticed.
            bits = image_hash(open_image(record["image"]))
            for band in bands(bits, options.decontaminate_bits):
                yield band, (_FIRST, "", where, bits)
        if options.decontaminate_by != "image":
            for text in dict.fromkeys(map(text_hash, record["texts"])):
                yield f"caption {text}", (_FIRST, "", where, text)


def members(row: Row, options: Options) -> Iterator[tuple[str, tuple]]:
    if options.decontaminate_by != "caption":
        for band in bands(row.image_hash, options.decontaminate_bits):
            yield band, (row.rank, row.id, "", row.image_hash)
    if options.decontaminate_by != "image":
        for text in dict.fromkeys(map(text_hash, row.texts)):
            yield f"caption {text}", (row.rank, row.id, "", text)


def votes(members: Sequence[tuple], options: Options) -> Iterator[tuple[str, tuple]]:
    known = [(where, value) for rank, _, where, value in members if rank == _FIRST]
    for rank, member, _, value in members if known else ():
        if rank == _FIRST:
            continue
        if isinstance(value, str):
            yield member, ("caption", value, known[0][0])
        else:
            bits, where = min((distance(value, other), where) for where, other in known)
            if bits <= options.decontaminate_bits:
                yield member, ("an image", bits, where)


def decontaminate(row: Row, votes: Sequence[tuple], options: Options, note: Note) -> Row:
    """The row without captions of an evaluation set. Raises RecordError where none is left, or for an image of one."""
    images = [vote for vote in votes if vote[0] == "an image"]
    if images:
        _, bits, where = images[0]
        raise RecordError("image of an evaluation set", f"{bits} bits from {where}")
    gone = {vote[1] for vote in votes}
    return without(row, [text_hash(text) in gone for text in row.texts], "caption of an evaluation set", note)
