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
    """While a unit is read, with the pixels at hand."""

    on: On
    apply: Callable[[Example, Options, Note], Example]


class BatchStep(NamedTuple):
    """While a unit is read, over all that it holds by then."""

    on: On
    apply: Callable[[list[Example], Options], list[Example]]


class GroupStep(NamedTuple):
    """Compares the rows that share a group: as many groups a row as it likes, each small."""

    on: On
    members: Callable[[Row, Options], Iterable[tuple[str, tuple]]]  # group, what to compare: begins with rank, id
    votes: Callable[[Sequence[tuple], Options], Iterable[tuple[str, Any]]]  # sorted members -> id, vote
    apply: Callable[[Row, Sequence[Any], Options, Note], Row]  # votes on this row, sorted
    # Members of other records, which come before all rows and get no votes.
    references: Callable[[Options], Iterable[Any]] = lambda options: ()
    reference_members: Callable[[Any, Options], Iterable[tuple[str, tuple]]] | None = None


class CountStep(NamedTuple):
    """Decides by counts over all rows."""

    on: On
    count: Callable[[Row, Options], Iterable[str]]  # what to count this row under
    finish: Callable[[dict[str, int], Options], Any]  # all counts -> what apply needs, small
    apply: Callable[[Row, Any, Options, Note], Row]


Step = ExampleStep | BatchStep | GroupStep | CountStep
