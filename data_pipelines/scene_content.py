"""The content of a scene in words: objects, captions, class names, the held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (246, 214, 36),
    "green": (44, 150, 62),
    "cyan": (40, 200, 215),
    "blue": (38, 78, 200),
    "purple": (130, 60, 170),
    "pink": (245, 130, 190),
    "brown": (128, 78, 48),
    "black": (25, 25, 28),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring", "crescent", "arrow")
SIZES = ("small", "large")
MAX_COUNT = 3
HELD_OUT_PER_SHAPE = 2

_COUNT_WORDS = ("one", "two", "three")
# relation -> forms of a caption with "{a}" and "{b}". Right of and below are these two, said the other way round.
_RELATIONS = {
    "left": (
        "{a} left of {b}",
        "{b} right of {a}",
        "{a} to the left of {b}",
        "{b} to the right of {a}",
        "{b} with {a} on its left",
        "{a} and, on its right, {b}",
        "on the left {a}, on the right {b}",
    ),
    "above": (
        "{a} above {b}",
        "{b} below {a}",
        "{a} over {b}",
        "{b} under {a}",
        "{b} with {a} above it",
        "{a} at the top and {b} at the bottom",
    ),
}
RELATIONS = tuple(_RELATIONS)

Kind = tuple[int, int]  # (index into COLOURS, index into SHAPES)


@dataclass(frozen=True)
class Single:
    """`count` objects of one kind and one size."""

    kind: Kind
    count: int
    size: int  # index into SIZES


@dataclass(frozen=True)
class Pair:
    """One object beside or above another of another kind."""

    first: Kind
    second: Kind
    relation: str  # the place of `first`, seen from `second`


Content = Single | Pair


def held_out_kinds(seed: int) -> frozenset[Kind]:
    """Colour-shape pairs of the compositional split: two of each shape and two of each colour.

    Each colour and each shape stays in training with its other partners. So the name of a held-out pair has no new
    word, only a new combination.
    """
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(COLOURS))
    count = len(COLOURS)
    return frozenset(
        (int(order[(shape + shift) % count]), shape)
        for shape in range(len(SHAPES))
        for shift in range(HELD_OUT_PER_SHAPE)
    )


def all_kinds() -> list[Kind]:
    return [(colour, shape) for colour in range(len(COLOURS)) for shape in range(len(SHAPES))]


def class_names() -> list[str]:
    """Every count x colour x shape, as "three blue triangles"; `label` is an index into this list."""
    return [_objects(kind, count) for count in range(1, MAX_COUNT + 1) for kind in all_kinds()]


def label(content: Single) -> int:
    return (content.count - 1) * len(all_kinds()) + _kind_index(content.kind)


def pair_id(content: Content) -> int:
    """A number for the content: two scenes have the same number exactly if the captions of each fit both."""
    kinds = len(all_kinds())
    if isinstance(content, Single):
        return ((content.count - 1) * len(SIZES) + content.size) * kinds + _kind_index(content.kind)
    singles = MAX_COUNT * len(SIZES) * kinds
    place = RELATIONS.index(content.relation) * kinds * kinds
    return singles + place + _kind_index(content.first) * kinds + _kind_index(content.second)


def captions(content: Content, rng: np.random.Generator, number: int) -> list[str]:
    """`number` different captions. The first says everything and is the same for equal contents."""
    complete, others = _single_captions(content) if isinstance(content, Single) else _pair_captions(content)
    others = [text for text in dict.fromkeys(others) if text != complete]
    chosen = rng.permutation(len(others))[: number - 1]
    return [complete, *(others[i] for i in chosen)]


def _single_captions(content: Single) -> tuple[str, list[str]]:
    plain = _objects(content.kind, content.count)
    sized = _objects(content.kind, content.count, content.size)
    verb = "is" if content.count == 1 else "are"
    colour, shape = _words(content.kind, content.count)
    counted = _COUNT_WORDS[content.count - 1]
    return sized, [
        plain,
        f"{counted} {colour} {shape}",
        f"{counted} {shape}, {colour}",
        f"{counted} {SIZES[content.size]} {shape} in {colour}",
        f"a picture of {plain}",
        f"an image of {plain}",
        f"a drawing of {sized}",
        f"there {verb} {sized}",
        f"{sized} on a background",
        f"a scene with {plain} and nothing else",
        f"{colour} {shape}, {counted} of them" if content.count > 1 else f"a single {colour} {shape}",
        f"{SIZES[content.size]} {colour} {shape}",
    ]


def _pair_captions(content: Pair) -> tuple[str, list[str]]:
    a, b = _objects(content.first, 1), _objects(content.second, 1)
    complete, *others = (form.format(a=a, b=b) for form in _RELATIONS[content.relation])
    return complete, [*others, f"a picture of {complete}", f"a drawing of {complete}"]


def _objects(kind: Kind, count: int, size: int | None = None) -> str:
    colour, shape = _words(kind, count)
    adjectives = colour if size is None else f"{SIZES[size]} {colour}"
    if count == 1:
        return f"{'an' if adjectives[0] in 'aeiou' else 'a'} {adjectives} {shape}"
    return f"{_COUNT_WORDS[count - 1]} {adjectives} {shape}"


def _words(kind: Kind, count: int) -> tuple[str, str]:
    colour, shape = tuple(COLOURS)[kind[0]], SHAPES[kind[1]]
    return colour, shape if count == 1 else shape + ("es" if shape.endswith("s") else "s")


def _kind_index(kind: Kind) -> int:
    return kind[0] * len(SHAPES) + kind[1]
