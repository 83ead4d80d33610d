"""The types that pass through the pipeline."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Example:
    """One image with its captions, while a unit is read."""

    key: str
    image: bytes
    texts: tuple[str, ...]
    label: int | str = ""  # number of the class, or its name where the reader knows no list of names; "": none
    # computed from the decoded pixels; see Row
    pixels_sha: str = ""
    image_hash: int = 0
    colours: str = ""
    scores: tuple[float, ...] = ()  # one for each caption, if a model scored them


@dataclass(frozen=True)
class Row:
    """One example without its pixels, which wait in a staged file. Later steps decide on rows."""

    key: str
    unit: int
    position: int  # in the unit's staged file
    texts: tuple[str, ...]
    label: int | str  # as in Example
    scores: tuple[float, ...]
    image_sha: str  # of the stored file
    pixels_sha: str  # of its pixels
    image_hash: int  # 64 bits; few of them differ between images that look alike, apart from colour
    colours: str  # mean colours of a grid of 4 x 4, in hexadecimal
    split: str = ""
    shard: int = -1

    @property
    def id(self) -> str:
        """Unique in a run, while keys may repeat."""
        return f"{self.unit}/{self.position}"

    @property
    def rank(self) -> tuple[str, int, int]:
        """Where rows exclude each other, the one with the smallest rank stays."""
        return (self.key, self.unit, self.position)

    @property
    def captions(self) -> tuple[tuple[str, float], ...]:
        """(caption, score) pairs; the score is 0 without a model."""
        return tuple(itertools.zip_longest(self.texts, self.scores, fillvalue=0.0))

    def with_captions(self, captions: Iterable[tuple[str, float]]) -> Row:
        texts, scores = zip(*captions, strict=True)
        return dataclasses.replace(self, texts=texts, scores=scores if self.scores else ())


class Unit(NamedTuple):
    """A piece of the input, read by one worker as a whole."""

    number: int
    name: str  # for messages
    reader: str
    files: tuple[str, ...]  # if one of them changes, the unit is read again
    payload: Any  # the reader's own; can be pickled


@dataclass(frozen=True)
class Listing:
    """The units into which a reader divides the input."""

    units: list[Unit]
    class_names: list[str] = field(default_factory=list)  # what numbers count; []: not known before all is read
    licences: list[dict[str, str]] = field(default_factory=list)


class Event(NamedTuple):
    """A step left out (dropped) or changed `count` examples, because of `cause`."""

    step: str
    cause: str
    dropped: bool
    key: str
    text: str  # shown in the report
    count: int = 1


def event(step: str, cause: str, dropped: bool, key: str, text: str, count: int = 1) -> Event:
    return Event(step, cause, dropped, key[:SHOWN], text[:SHOWN], count)


SHOWN = 300  # characters of a caption or message


Note = Callable[..., None]  # note(cause, key, text, count=1) reports a change


def place(text: str, salt: str) -> float:
    """A number in [0, 1), equally spread, that depends on text and salt alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:8]) / 2**64
