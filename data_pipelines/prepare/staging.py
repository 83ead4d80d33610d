"""Reads and cleans a unit once: its images go into one file, its rows and counts into another beside it.

A re-run uses the pair instead of the unit if the unit's files, the options that concern reading and the pair itself are
unchanged. Each file appears complete, the one with the rows last.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from clipjax.data.records import RecordError
from clipjax.files import replacing, write_text
from data_pipelines.command import PipelineError
from data_pipelines.files import file_sha256
from data_pipelines.input_content import file_state
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.steps import STEPS, languages
from data_pipelines.prepare.steps.kinds import BatchStep, ExampleStep
from data_pipelines.prepare.types import Event, Example, Row, Unit, event, place

VERSION = 2  # of the readers and steps; after a change of it everything is read again
SAMPLES = 5  # events of a cause that the report shows


@dataclasses.dataclass(frozen=True)
class Staged:
    """The result of a unit."""

    read: int  # examples, before any step
    rows: list[Row]
    events: list[Event]  # at most SAMPLES of each step and cause; the first has the count of all


def stage(unit: Unit, options: Options, folder: Path) -> Staged:
    """The unit's rows; its images are then in images_file. A damaged unit gives the part before the damage."""
    fingerprint = unit_fingerprint(unit, options)
    finished = _find_finished(unit, folder, fingerprint)
    if finished:
        return finished
    events = Events()
    rows, images = [], images_file(folder, unit.number)
    with replacing(images) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for example in _cleaned(_read(unit, options, events), options, events):
            writer.write(example.image)
            rows.append(_row(example, unit.number, len(rows)))
        writer.close()
    staged = Staged(events.seen, rows, events.summary())
    content = {
        "fingerprint": fingerprint,
        "sha256": file_sha256(images),
        "read": staged.read,
        "rows": [dataclasses.astuple(row) for row in rows],
        "events": staged.events,
    }
    write_text(_rows_file(folder, unit.number), json.dumps(content, ensure_ascii=False))
    return staged


def read_images(folder: Path, unit: int, positions: list[int]) -> list[bytes]:
    """The encoded images of the unit's rows at these positions."""
    reader = ArrayRecordReader(str(images_file(folder, unit)))
    try:
        return list(reader.read(positions))
    finally:
        reader.close()


def images_file(folder: Path, unit: int) -> Path:
    return folder / f"unit-{unit:06d}.arrayrecord"


def unit_fingerprint(unit: Unit, options: Options) -> str:
    """A digest of everything that decides the result of `stage`."""
    files = [(path, *file_state(path)) for path in unit.files]
    content = [VERSION, unit.reader, unit.payload, files, options.while_reading(), model_files(options.clip_model)]
    content += [languages.model(options)]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def model_files(folder: str, times: bool = True) -> list[tuple]:
    """(path, size, time) of each file in a model's folder; () for folder ""."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()] if folder else []
    return [(path.relative_to(folder).as_posix(), *file_state(path)[: 2 if times else 1]) for path in files]


class Events:
    """Counts events and keeps a few cases of each cause; the choice does not depend on their order."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str, bool]] = collections.Counter()
        self.samples: dict[tuple[str, str, bool], list[Event]] = collections.defaultdict(list)
        self.seen = 0

    def add(self, one: Event) -> None:
        name = (one.step, one.cause, one.dropped)
        self.counts[name] += one.count
        samples = self.samples[name]
        samples.append(one._replace(count=0))
        if len(samples) > 4 * SAMPLES:
            samples[:] = first_samples(samples)

    def summary(self) -> list[Event]:
        result = []
        for name in sorted(self.counts):
            first, *others = first_samples(self.samples[name])
            result += [first._replace(count=self.counts[name]), *others]
        return result


def first_samples(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (place(f"{event.key}\0{event.text}", "sample"), event))[:SAMPLES]


def _read(unit: Unit, options: Options, events: Events) -> Iterator[Example]:
    def note(cause: str, key: str, text: str, count: int = 1) -> None:
        events.add(event("read", cause, False, key, text, count))

    try:
        for example in READERS[unit.reader].read(unit, options, note):
            events.seen += 1
            yield example
    except PipelineError as error:
        events.add(event("read", "damaged input, read up to the damage", False, unit.name, str(error)))


def _cleaned(examples: Iterator[Example], options: Options, events: Events) -> Iterator[Example]:
    for name, step in STEPS.items():
        if isinstance(step, ExampleStep) and step.on(options):
            examples = _each(name, step, examples, options, events)
        elif isinstance(step, BatchStep) and step.on(options):
            examples = iter(_batched(step, examples, options))
    return examples


def _each(
    name: str, step: ExampleStep, examples: Iterator[Example], options: Options, events: Events
) -> Iterator[Example]:
    def note(cause: str, key: str, text: str) -> None:
        events.add(event(name, cause, False, key, text))

    for example in examples:
        try:
            example = step.apply(example, options, note)
        except RecordError as error:
            events.add(event(name, error.cause, True, example.key, str(error)))
            continue
        yield example


def _batched(step: BatchStep, examples: Iterator[Example], options: Options) -> Iterator[Example]:
    while batch := list(itertools.islice(examples, _BATCH)):
        yield from step.apply(batch, options)


def _row(example: Example, unit: int, position: int) -> Row:
    return Row(
        key=example.key,
        unit=unit,
        position=position,
        texts=example.texts,
        label=example.label,
        scores=example.scores,
        image_sha=hashlib.sha256(example.image).hexdigest()[:32],
        pixels_sha=example.pixels_sha,
        image_hash=example.image_hash,
        colours=example.colours,
    )


def _find_finished(unit: Unit, folder: Path, fingerprint: str) -> Staged | None:
    try:
        content = json.loads(_rows_file(folder, unit.number).read_text(encoding="utf-8"))
        if content["fingerprint"] != fingerprint or content["sha256"] != file_sha256(images_file(folder, unit.number)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    rows = [Row(key, unit, at, tuple(texts), label, tuple(scores), *rest)
            for key, unit, at, texts, label, scores, *rest in content["rows"]]  # fmt: skip
    return Staged(content["read"], rows, [Event(*event) for event in content["events"]])


def _rows_file(folder: Path, unit: int) -> Path:
    return folder / f"unit-{unit:06d}.json"


_BATCH = 256
