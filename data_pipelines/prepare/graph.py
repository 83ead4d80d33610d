"""The Beam pipeline: units -> rows -> steps -> shards -> one summary.

Pixels never pass through Beam: they wait in the staged files. Only rows of a few hundred bytes pass through it. Every
worker must see the staged files and the folder of the shards under the same paths.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsSingleton, PCollection, TaggedOutput

from clipjax.data.labels import names_of_texts
from clipjax.data.records import RecordError
from clipjax.files import write_text
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.shard_files import write_shard
from data_pipelines.prepare.staging import SAMPLES, first_samples, stage
from data_pipelines.prepare.steps import STEPS
from data_pipelines.prepare.steps.kinds import CountStep, GroupStep
from data_pipelines.prepare.types import Event, Row, Unit, event


def build(root: beam.Pipeline, units: list[Unit], options: Options, class_names: list[str], folder: Path) -> None:
    """Builds the pipeline, which writes shards to folder/shards and, last, folder/summary.json.

    class_names: what labels are numbers or names of; []: the rows' labels that are names, sorted.
    """
    staged = (
        root
        | "units" >> beam.Create(units)
        | "spread" >> beam.Reshuffle()
        | "read and clean" >> beam.ParDo(_Stage(options, folder / "units")).with_outputs("events", "read", main="rows")
    )
    rows, events = staged.rows, [staged.events]
    layout = None
    for name, step in STEPS.items():
        if isinstance(step, GroupStep) and step.on(options):
            rows, told = _group(name, step, rows, options)
            events.append(told)
        elif isinstance(step, CountStep) and step.on(options):
            rows, told, layout = _count(name, step, rows, options)
            events.append(told)
    named = (
        rows
        | "labels" >> beam.Map(lambda row: (row.label, row.key))
        | "distinct labels" >> beam.CombinePerKey(min)
        | "list labels" >> beam.combiners.ToList()
        | "class names" >> beam.Map(_class_names, class_names)
    )
    shards = (
        rows
        | "by shard" >> beam.Map(lambda row: ((row.split, row.shard), row))
        | "shards" >> beam.GroupByKey()
        | "write" >> beam.Map(_write, AsSingleton(layout), AsSingleton(named), folder)
    )
    summary = {
        "read": staged.read | "count read" >> beam.CombineGlobally(sum),
        "events": events | beam.Flatten() | "count events" >> _Counted(),
        "shards": shards | "list shards" >> beam.combiners.ToList(),
        "class_names": named,
    }
    _ = (
        root
        | "once" >> beam.Create([None])
        | "summary" >> beam.Map(_summarise, folder, **{name: AsSingleton(value) for name, value in summary.items()})
    )


def _class_names(labels: list[tuple[int | str, str]], given: list[str]) -> list[str]:
    """labels: each with the key of a record that has it.

    Raises ManifestError where no names are given and some labels are numbers and some are names.
    """
    found = ((None if label == "" else label, f"record '{key}'") for label, key in sorted(labels, key=str))
    return given or list(names_of_texts(found, "The input").names)


class _Stage(beam.DoFn):
    def __init__(self, options: Options, folder: Path):
        self.options, self.folder = options, folder

    def process(self, unit: Unit) -> Iterator[Any]:
        staged = stage(unit, self.options, self.folder)
        logging.info("%s: %d examples, %d kept", unit.name, staged.read, len(staged.rows))
        yield TaggedOutput("read", staged.read)
        yield from (TaggedOutput("events", one) for one in staged.events)
        yield from staged.rows


def _group(
    name: str, step: GroupStep, rows: PCollection[Row], options: Options
) -> tuple[PCollection[Row], PCollection[Event]]:
    members = rows | f"{name}: members" >> beam.FlatMap(step.members, options)
    if step.reference_members:
        references = (
            rows.pipeline
            | f"{name}: references" >> beam.Create(list(step.references(options)))
            | f"{name}: spread" >> beam.Reshuffle()
            | f"{name}: reference members" >> beam.FlatMap(step.reference_members, options)
        )
        members = (members, references) | f"{name}: both" >> beam.Flatten()
    votes = (
        members
        | f"{name}: groups" >> beam.GroupByKey()
        | f"{name}: votes" >> beam.FlatMap(lambda group: step.votes(sorted(group[1]), options))
    )
    outputs = (
        {"row": rows | f"{name}: by id" >> beam.Map(lambda row: (row.id, row)), "votes": votes}
        | f"{name}: join" >> beam.CoGroupByKey()
        | f"{name}: decide"
        >> beam.ParDo(_Decide(name, lambda row, votes, note: step.apply(row, votes, options, note))).with_outputs(
            "events", main="rows"
        )
    )
    return outputs.rows, outputs.events


def _count(
    name: str, step: CountStep, rows: PCollection[Row], options: Options
) -> tuple[PCollection[Row], PCollection[Event], PCollection[Any]]:
    counts = (
        rows
        | f"{name}: names" >> beam.FlatMap(step.count, options)
        | f"{name}: counts" >> beam.combiners.Count.PerElement()
    )
    finished = (
        rows.pipeline
        | f"{name}: once" >> beam.Create([None])
        | f"{name}: finish" >> beam.Map(lambda _, counts: step.finish(counts, options), AsDict(counts))
    )
    outputs = rows | f"{name}: decide" >> beam.ParDo(
        _DecideByCounts(name, lambda row, table, note: step.apply(row, table, options, note)), AsSingleton(finished)
    ).with_outputs("events", main="rows")
    return outputs.rows, outputs.events, finished


class _Decide(beam.DoFn):
    """(id, {"row": [row], "votes": [...]}) -> rows and events."""

    def __init__(self, step: str, apply: Any):
        self.step, self.apply = step, apply

    def process(self, joined: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[Any]:
        (row,) = joined[1]["row"]
        yield from self.decide(row, sorted(set(joined[1]["votes"])))

    def decide(self, row: Row, known: Any) -> Iterator[Any]:
        events: list[Event] = []
        try:
            yield self.apply(row, known, lambda *what: events.append(event(self.step, what[0], False, *what[1:])))
        except RecordError as error:
            yield TaggedOutput("events", event(self.step, error.cause, True, row.key, str(error)))
        else:
            yield from (TaggedOutput("events", one) for one in events)


class _DecideByCounts(_Decide):
    def process(self, row: Row, table: Any) -> Iterator[Any]:
        yield from self.decide(row, table)


def _write(
    group: tuple[tuple[str, int], Iterable[Row]],
    layout: dict[str, list[int]],
    class_names: list[str],
    folder: Path,
) -> dict:
    (split, shard), rows = group
    return write_shard(folder, split, shard, len(layout[split]), list(rows), class_names)


class _Counted(beam.PTransform):
    """Events -> one list of ((step, cause, dropped), (count, a few cases))."""

    def expand(self, events: PCollection[Event]) -> PCollection[list]:
        return (
            events
            | beam.Map(lambda one: ((one.step, one.cause, one.dropped), one))
            | beam.CombinePerKey(_CountEvents())
            | beam.combiners.ToList()
        )


class _CountEvents(beam.CombineFn):
    def create_accumulator(self) -> tuple[int, list[Event]]:
        return 0, []

    def add_input(self, total: tuple[int, list[Event]], one: Event) -> tuple[int, list[Event]]:
        samples = [*total[1], one._replace(count=0)]
        return total[0] + one.count, samples if len(samples) <= 4 * SAMPLES else first_samples(samples)

    def merge_accumulators(self, totals: Iterable[tuple[int, list[Event]]]) -> tuple[int, list[Event]]:
        counts, samples = zip(*totals, strict=True)
        return sum(counts), first_samples([one for some in samples for one in some])

    def extract_output(self, total: tuple[int, list[Event]]) -> tuple[int, list[Event]]:
        return total[0], first_samples(total[1])


def _summarise(_: None, folder: Path, *, read: int, events: list, shards: list[dict], class_names: list[str]) -> None:
    counted = [
        {
            "step": step,
            "cause": cause,
            "dropped": dropped,
            "count": count,
            "samples": [(e.key, e.text) for e in samples],
        }
        for (step, cause, dropped), (count, samples) in sorted(events)
    ]
    content = {"read": read, "events": counted, "shards": sorted(shards, key=lambda shard: shard["file"])}
    content |= {"class_names": class_names}
    write_text(folder / "summary.json", json.dumps(content, ensure_ascii=False))
