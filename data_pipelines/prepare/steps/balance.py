"""Balances captions by the entries they mention, as MetaCLIP does.

Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671, algorithm 1): a caption matches the entries of a list that
occur in its text. An entry with more than t matches lets each of them through with probability t / matches. A caption
is kept if one of its entries lets it through; one that matches no entry is not kept. Hashes of key, caption and entry
take the place of random numbers here, so that the same data give the same choice.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from clipjax.data.records import RecordError
from clipjax.files import TextFileError, read_text, split_lines
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.steps.repeats import without
from data_pipelines.prepare.types import Note, Row, place


def count(row: Row, options: Options) -> Iterator[str]:
    entries, longest = read_entries(options.balance_entries)
    for text in row.texts:
        yield from matches(text, entries, longest)


def probabilities(counts: dict[str, int], options: Options) -> dict[str, float]:
    """Entry -> probability that it lets a caption through; entries with probability 1 are left out."""
    return {entry: options.balance_limit / n for entry, n in counts.items() if n > options.balance_limit}


def balance(row: Row, probability: dict[str, float], options: Options, note: Note) -> Row:
    """The row without the captions that no entry lets through. Raises RecordError where none is left."""
    entries, longest = read_entries(options.balance_entries)
    matched = [matches(text, entries, longest) for text in row.texts]
    if not any(matched):
        raise RecordError("caption matches no entry", " | ".join(row.texts))
    out = [
        not any(place(f"{row.key}\0{text}\0{entry}", "balance") < probability.get(entry, 1.0) for entry in own)
        for text, own in zip(row.texts, matched, strict=True)
    ]
    return without(row, out, "only frequent entries", note)


def matches(text: str, entries: frozenset[str], longest: int) -> list[str]:
    """The entries that occur in the text as whole words, each once, sorted."""
    words = _words(text)
    runs = {
        " ".join(words[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    }
    return sorted(runs & entries)


@functools.lru_cache(4)
def read_entries(path: str) -> tuple[frozenset[str], int]:
    """(lines of the file as lower-case words, number of words of the longest). Raises PipelineError."""
    try:
        lines = split_lines(read_text(path))
    except (OSError, TextFileError) as error:
        raise PipelineError(f"--balance_entries={path} cannot be read as UTF-8 text: {error}") from error
    entries = {" ".join(_words(line)) for line in lines} - {""}
    if not entries:
        raise PipelineError(f"--balance_entries={path} has no entry; expected one on each line.")
    return frozenset(entries), max(len(entry.split()) for entry in entries)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?", text.casefold())
