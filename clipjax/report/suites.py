"""Published suites of data sets whose result file and averages `clipjax eval` writes (EvaluationConfig.suite)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.report import datacomp


class Suite(NamedTuple):
    """What a suite makes of results."""

    # (evaluator's name, its options, its result) -> the set's entry, with its "key", or None for another set
    entry: Callable[..., dict[str, Any] | None]
    write: Callable[[Path, Mapping[str, Mapping[str, Any]]], None]  # (folder, {key: entry})
    summary: Callable[[Mapping[str, Mapping[str, Any]]], list[str]]  # lines about {key: entry}


SUITES: dict[str, Suite] = {"datacomp": Suite(datacomp.entry, datacomp.write, datacomp.summary)}
