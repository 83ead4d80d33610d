"""Batches whose texts are cut to the shortest of a few lengths that the GLOBAL batch needs.

What is cut off changes nothing that the towers compute; clipjax/training/cut.py says for which towers. The lengths are
a function of the batch, so that a run resumes with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]
REST = "text_rest"  # the column of the longer texts, where a batch has two lengths
WHOLE = "whole_text"  # the column of texts that are not cut, for a teacher that reads the padding


class TextCut(NamedTuple):
    """How the texts of a batch are cut."""

    lengths: tuple[int, ...]  # ascending; the last is the whole length
    needed: Callable[[np.ndarray], np.ndarray]  # ids [..., L] -> [...]: see Tower.needed
    short: float = 0.0  # the share of each device's rows that have a shorter length of their own; 0: one length for all
    keep_whole: bool = False  # also keep the texts as they are, as column WHOLE
    min_rows: int = 16  # of a device's micro-batch, from which on its short rows have a length of their own

    def fitting(self, needed: int) -> int:
        """The shortest of the lengths that is at least `needed`."""
        return next(length for length in self.lengths if length >= needed)

    def short_rows(self, rows: int) -> int:
        """How many of one device's `rows` are the short ones; 0: all have one length. Whole tiles of 8."""
        return int(rows * self.short) // 8 * 8 if rows >= self.min_rows else 0

    def chosen(self, first: int, last: int, rows: int) -> tuple[int, int]:
        """The lengths (of the short rows, of the others) for the columns that they need; equal where two do not pay.

        The tower then runs twice, which costs more than it saves unless a fifth of all tokens falls away.
        """
        short, last = self.fitting(first), self.fitting(last)
        saved = self.short_rows(rows) * (last - short)
        return (short, last) if saved >= rows * last / 5 else (last, last)


def cut_texts(
    batches: Iterator[tuple[Batch, Any]],
    cut: TextCut,
    *,
    shards: int,
    largest: Callable[[Sequence[int]], Sequence[int]] = tuple,
) -> Iterator[tuple[Batch, Any]]:
    """batches, (this process's rows, anything) each, with the column "text" [b, L] or [b, K, L] cut.

    shards: the number of equal parts of this process's rows that stay together: its devices times the micro-batches.
    largest: the largest values of all processes (clipjax.processes.Largest).

    Where two lengths pay (TextCut.chosen), each shard's rows are sorted by the length of their texts, all columns
    alike, and the longer texts become the column REST: "text" has the short_rows first rows of every shard, REST the
    others.
    """
    for batch, extra in batches:
        text = batch["text"]
        needed = cut.needed(text).reshape(len(text), -1).max(axis=1).reshape(shards, -1)  # [shards, rows of one]
        short = cut.short_rows(needed.shape[1])
        order = np.argsort(needed, axis=1, kind="stable")
        in_order = np.take_along_axis(needed, order, axis=1)
        first, last = largest([int(in_order[:, column].max()) for column in (short - 1, -1)])
        yield _cut(batch, cut, *cut.chosen(first, last, needed.shape[1]), order, short), extra


def _cut(batch: Batch, cut: TextCut, first: int, last: int, order: np.ndarray, short: int) -> Batch:
    kept = {WHOLE: batch["text"]} if cut.keep_whole else {}
    if first == last:
        return batch | kept | {"text": batch["text"][..., :last]}
    shards, rows = order.shape
    order = order + rows * np.arange(shards)[:, None]
    batch = {name: column[order.ravel()] for name, column in (batch | kept).items()}
    text = batch["text"].reshape(shards, rows, *batch["text"].shape[1:])
    parts = {"text": text[:, :short, ..., :first], REST: text[:, short:, ..., :last]}
    return batch | {name: part.reshape(-1, *part.shape[2:]) for name, part in parts.items()}


def ladder(whole: int, most: int) -> tuple[int, ...]:
    """At most `most` lengths, ascending, the last of which is `whole`: 77 -> 16, 24, 32, 48, 77.

    Multiples of 8, from 16 on, each 4/3 or 3/2 of the one before; or powers of two, where those are too many. None is
    above three quarters of the whole, which would save less than a program more costs.
    """
    powers = [2**k for k in range(4, 31)]
    for steps in (sorted([*powers, *(3 * p // 2 for p in powers)]), powers):
        lengths = [n for n in steps if n <= 0.75 * whole]
        if len(lengths) < most:
            break
    return (*lengths[max(len(lengths) - most + 1, 0) :], whole)


def counted(lengths: Sequence[int]) -> str:
    """'16, 24 or 77'."""
    texts = list(map(str, lengths))
    return " or ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))
