"""What a source holds, as text: sample records with their tokens, bad records, captions' lengths, classes.

`clipjax check` and `clipjax check-data` print it.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clipjax.config import SourceConfig
from clipjax.data.bad_records import BadRecordCounts, bad_record
from clipjax.data.images.decode import open_image
from clipjax.data.probe import read_in_threads, some_of
from clipjax.data.records import RecordError
from clipjax.data.sources import Source
from clipjax.data.tokenizers import Tokenizer
from clipjax.files import printable
from clipjax.processes import announce

SAMPLES = 5  # records that are shown
CLASSES = 3  # classes that are shown of the most and of the least frequent
LONGEST = 300  # characters of a caption, and of its tokens, that are shown
MOST_PROMPTS = 10_000
MANY_UNKNOWN = 0.1  # of the captions; a hint is shown then
AT_A_TIME = 1024  # captions tokenized together
SECONDS = 30.0  # between lines of progress


@dataclasses.dataclass
class SourceReport:
    """What was read of one source."""

    records: int  # in the source
    read: int = 0  # of them
    image_bytes: int = 0
    captions: int = 0
    bad: BadRecordCounts = dataclasses.field(default_factory=lambda: BadRecordCounts({}, "found"))
    shards: list[str] = dataclasses.field(default_factory=list)  # paths of those that differ from their manifest
    labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # label -> records
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # tokens -> captions
    unknown: int = 0  # captions with text that the tokenizer's vocabulary cannot express

    @property
    def good(self) -> int:
        return self.read - self.bad.causes.total()


def read_source(
    source: Source, num_threads: int, *, decode: bool = True, tokenizer: Tokenizer | None = None, most: int = 0
) -> SourceReport:
    """Reads every record of a source, or `most` of them drawn at random; decodes images if `decode`.

    tokenizer: counts the captions' tokens; None: they are not counted. Shards are compared with their checksums where
    everything is read.
    """
    indices = some_of(source, most or len(source))
    whole = len(indices) == len(source)
    damaged = source.damaged_files() if whole and hasattr(source, "damaged_files") else []
    report = SourceReport(len(source), shards=damaged)

    def read(index: int) -> tuple[int, Sequence[str], int]:
        record = source[index]
        if decode:
            open_image(record["image"])
        return len(record["image"]), record["texts"], record["label"]

    waiting: list[str] = []
    told = time.monotonic()
    for index, result in zip(indices, read_in_threads(source, read, indices, num_threads), strict=True):
        report.read += 1
        if isinstance(result, RecordError):
            report.bad.add([bad_record(source, int(index), result)])
            continue
        report.image_bytes += result[0]
        report.captions += len(result[1])
        report.labels[result[2]] += 1
        waiting += result[1]
        if len(waiting) >= AT_A_TIME:
            count_tokens(report, waiting, tokenizer)
        if time.monotonic() - told > SECONDS:
            told = time.monotonic()
            announce(f"  read {report.read:,} of {len(indices):,} records")
    count_tokens(report, waiting, tokenizer)
    return report


def count_tokens(report: SourceReport, texts: list[str], tokenizer: Tokenizer | None) -> None:
    """Adds the lengths of texts to the report and empties the list."""
    if tokenizer and texts:
        lengths = tokenizer.lengths(texts)
        report.lengths.update(lengths)
        if tokenizer.unk_id >= 0:
            rows = zip(tokenizer(texts), lengths, strict=True)  # without padding, which may have the same id
            report.unknown += sum(tokenizer.unk_id in row[:length] for row, length in rows)
    texts.clear()


def describe_samples(
    source: Source,
    tokenizer: Tokenizer | None = None,
    class_names: Sequence[str] | Callable[[int], str] = (),
    count: int = SAMPLES,
) -> str:
    """Lines about `count` records from all over a source: key, image size, first caption, its tokens, label.

    tokenizer: None: no tokens are shown. class_names: what labels index, or a function from a label to its name.
    """
    name_of = class_names if callable(class_names) else lambda label: _name(label, class_names)
    lines = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)):
        try:
            record = source[int(index)]
            width, height = open_image(record["image"]).size
        except RecordError as error:
            lines.append(f"  record {index}: bad ({error.cause}): {printable(error)}")
            continue
        label = record["label"]
        shown = "no label" if label < 0 else f"label {label} {name_of(label)}".rstrip()
        lines.append(f"  record {index}: key '{printable(record['key'])}', image {width} x {height}, {shown}")
        texts = record["texts"]
        more = f" (1 of {len(texts)} captions)" if len(texts) > 1 else ""
        lines.append(f"    caption: '{_short(texts[0])}'{more}")
        if tokenizer:
            lines.append(f"    {describe_tokens(texts[0], tokenizer)}")
    return "\n".join(lines)


def describe_tokens(text: str, tokenizer: Tokenizer) -> str:
    """'4 tokens: ▁a ▁red ▁dog </s>': the pieces that the model reads, without padding."""
    (ids,), (length,) = tokenizer([text]), tokenizer.lengths([text])
    kept = min(length, len(ids))
    cut = f", cut at {len(ids)}" if length > len(ids) else ""
    return f"{length} tokens{cut}: {_short(' '.join(tokenizer.pieces(ids[:kept])))}"


def describe(report: SourceReport, *, context_length: int = 0, class_names: Sequence[str] = ()) -> str:
    """The lines about a source that was read.

    context_length: tokens that the text tower reads. class_names: what labels index.
    """
    some = "" if report.read == report.records else f" (of {report.records} in all, drawn at random)"
    lines = [
        f"  {report.good} of {report.read} records{some} are good, with {report.captions} captions and "
        f"{report.image_bytes / 1e6:.1f} MB of images",
        *describe_lengths("caption", report.lengths, context_length),
        *describe_unknown(report),
        *describe_classes(report.labels, class_names),
    ]
    lines += [f"  {count} bad: {cause}" for cause, count in sorted(report.bad.causes.items())]
    if report.bad.files:
        lines.append(f"  worst files: {report.bad.worst_files()}")
    lines += [f"  {path}: its sha256 is not that of the manifest" for path in report.shards]
    return "\n".join(lines)


def describe_source(name: str, config: SourceConfig) -> str:
    """The line that names a source: 'train: array_record data/scenes train'."""
    return f"{name}: {config.name} {config.path} {config.split}"


def describe_lengths(what: str, lengths: collections.Counter, context_length: int) -> list[str]:
    """The line about the number of tokens of a caption or a prompt; [] where none were counted."""
    if not lengths:
        return []
    total, cut = lengths.total(), sum(count for length, count in lengths.items() if length > context_length)
    middle, high = quantile(lengths, 0.5), quantile(lengths, 0.95)
    return [
        f"  tokens of a {what}: median {middle}, 95 % up to {high}, max {max(lengths)}; {cut} of {total} {what}s "
        f"({cut / total:.1%}) are cut at config.model.text.context_length={context_length}"
    ]


def describe_unknown(report: SourceReport) -> list[str]:
    """The line about captions of which the model cannot read a part; [] without any."""
    if not report.unknown:
        return []
    line = (
        f"  {report.unknown} of {report.captions} captions ({report.unknown / report.captions:.1%}) have characters or "
        "words that config.tokenizer does not know, which all become one token"
    )
    many = report.unknown > MANY_UNKNOWN * report.captions
    return [line + ": use a tokenizer of these captions' language" if many else line]


def describe_prompts(name: str, prompts: Sequence[str], tokenizer: Tokenizer, context_length: int) -> str:
    """The lines about the texts that stand for an evaluator's classes; of many, MOST_PROMPTS are counted."""
    some = prompts[:: -(-len(prompts) // MOST_PROMPTS)]
    counted = describe_lengths("prompt", collections.Counter(tokenizer.lengths(some)), context_length)
    return "\n".join(
        [f"  {name}: {len(prompts)} prompts, such as '{_short(prompts[0])}'", *(f"  {c}" for c in counted)]
    )


def quantile(counts: collections.Counter, share: float) -> int:
    """The smallest value that at least `share` of the counted values do not exceed."""
    values = np.array(sorted(counts))
    reached = np.cumsum([counts[value] for value in values])
    return int(values[np.searchsorted(reached, share * reached[-1])])


def describe_classes(labels: collections.Counter, class_names: Sequence[str]) -> list[str]:
    """The lines about labels: how many records have one, and the most and least frequent classes; [] without any."""
    classes = sorted(((label, count) for label, count in labels.items() if label >= 0), key=lambda c: (-c[1], c[0]))
    if not classes:
        return []
    labelled = sum(count for _, count in classes)
    of = f" of {len(class_names)}" if class_names else ""
    lines = [f"  labels: {labelled} of {labels.total()} records have one, of {len(classes)}{of} classes"]
    shown = lambda some: ", ".join(f"{n} {_name(label, class_names) or label}" for label, n in some)  # noqa: E731
    if len(classes) <= 2 * CLASSES:
        return [*lines, f"    records in a class: {shown(classes)}"]
    lines.append(f"    records in a class: most {shown(classes[:CLASSES])}; fewest {shown(classes[-CLASSES:])}")
    empty = [label for label in range(len(class_names)) if label not in labels]
    if empty:
        some = ", ".join(_name(label, class_names) for label in empty[:CLASSES])
        lines.append(f"    {len(empty)} classes have no record: {some}{', ...' if empty[CLASSES:] else ''}")
    return lines


def _name(label: int, class_names: Sequence[str]) -> str:
    if not class_names:
        return ""
    return f"'{printable(class_names[label])}'" if 0 <= label < len(class_names) else "(there is no such class name)"


def _short(text: Any) -> str:
    text = printable(" ".join(str(text).split("\n")))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
