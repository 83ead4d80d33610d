"""The four kinds of steps. Each has functions only; graph.py runs them.

A function that leaves an example out raises RecordError(cause, what to show); one that changes it calls note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from data_pipelines.prepare.options import Options
from data_pipelines.prepare.types import Example, Note, Row

On = Callable[[Options], bool]


class ExampleStep(NamedTuple):
    """Runs while a unit is read, on one example with its pixels."""

    on: On
    apply: Callable[[Example, Options, Note], Example]


class BatchStep(NamedTuple):
    """Runs while a unit is read, on many examples at a time."""

    on: On
    apply: Callable[[list[Example], Options], list[Example]]


class GroupStep(NamedTuple):
    """Compares the rows that share a group. A row may be in several groups; each group is small."""

    on: On
    members: Callable[[Row, Options], Iterable[tuple[str, tuple]]]  # (group, (rank, id, values to compare))
    votes: Callable[[Sequence[tuple], Options], Iterable[tuple[str, Any]]]  # sorted members -> id, vote
    apply: Callable[[Row, Sequence[Any], Options, Note], Row]  # votes on this row, sorted
    # Members that stand for other records. They rank before all rows and get no votes.
    references: Callable[[Options], Iterable[Any]] = lambda options: ()
    reference_members: Callable[[Any, Options], Iterable[tuple[str, tuple]]] | None = None


class CountStep(NamedTuple):
    """Decides by counts over all rows."""

    on: On
    count: Callable[[Row, Options], Iterable[str]]  # names under which this row is counted
    finish: Callable[[dict[str, int], Options], Any]  # all counts -> a small table for apply
    apply: Callable[[Row, Any, Options, Note], Row]


Step = ExampleStep | BatchStep | GroupStep | CountStep
