"""Reads all data of an experiment once and reports what is wrong with it, before a run meets it.

    clipjax check-data --config=experiments/emoji.py
    clipjax check-data --config=experiments/emoji.py --decode=False --config.data.num_threads=16

It reads every record of the training source (or of each part of a mixture) and of the evaluators' sources, decodes its
image, and compares shards with the sha256 in their manifest. Bad records are counted by cause and bad shards are named;
the exit code is then 1.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from absl import flags

from clipjax.commands import flags as cli
from clipjax.config import ExperimentConfig, SourceConfig, from_config_dict, require
from clipjax.data.bad_records import BadRecordCounts, bad_record
from clipjax.data.images.decode import open_image
from clipjax.data.records import RecordError
from clipjax.data.sources import Source, open_source

CHUNK = 1024  # records handed to the threads at a time


class BadDataError(RuntimeError):
    """Records or shards are bad; the message counts them."""


@dataclasses.dataclass
class SourceReport:
    """What one source holds."""

    records: int
    image_bytes: int
    captions: int
    bad: BadRecordCounts
    shards: list[str]  # paths of those that differ from their manifest


def run(config: ExperimentConfig, decode: bool = True) -> dict[str, SourceReport]:
    """Prints a report for each source and returns them by name.

    Raises BadDataError if anything is bad, ManifestError for a source that cannot be opened.
    """
    sources = sources_of(config)
    require(len(sources) > 0, "config.data.train.path and config.eval.evaluators name no data to check.")
    reports = {}
    for name, source in sources.items():
        reports[name] = check_source(source, config.data.num_threads, decode)
        print(describe(name, source, reports[name]), flush=True)
    bad = sum(report.bad.causes.total() for report in reports.values())
    shards = sum(len(report.shards) for report in reports.values())
    if bad or shards:
        raise BadDataError(f"{bad} bad record(s) and {shards} damaged shard(s) in {len(reports)} source(s); see above.")
    return reports


def sources_of(config: ExperimentConfig) -> dict[str, SourceConfig]:
    """{name: source}, each source once; names of equal sources are joined by "and"."""
    named = {"train": config.data.train} if config.data.train.path else {}
    named |= {f"train, {name}": part.source for name, part in config.data.mixture.items()}
    named |= {name: evaluator.source for name, evaluator in config.eval.evaluators.items()}
    by_source: dict[SourceConfig, list[str]] = collections.defaultdict(list)
    for name, source in named.items():
        by_source[source].append(name)
    return {" and ".join(names): source for source, names in by_source.items()}


def check_source(config: SourceConfig, num_threads: int, decode: bool) -> SourceReport:
    """Reads every record of a source, and decodes its image if `decode`."""
    source = open_source(config)
    damaged = source.damaged_files() if hasattr(source, "damaged_files") else []
    report = SourceReport(len(source), 0, 0, BadRecordCounts({}, "found"), damaged)

    def read(index: int) -> tuple[int, int] | RecordError:
        try:
            record = source[index]
            if decode:
                open_image(record["image"])
            return len(record["image"]), len(record["texts"])
        except RecordError as error:
            return error

    for index, result in enumerate(_in_threads(read, source, num_threads)):
        if isinstance(result, RecordError):
            report.bad.add([bad_record(source, index, result)])
        else:
            report.image_bytes += result[0]
            report.captions += result[1]
    return report


def describe(name: str, config: SourceConfig, report: SourceReport) -> str:
    """The lines to print about a source."""
    good = report.records - report.bad.causes.total()
    lines = [
        f"{name}: {config.name} {config.path} {config.split}",
        f"  {good} of {report.records} records are good, with {report.captions} captions and "
        f"{report.image_bytes / 1e6:.1f} MB of images",
    ]
    lines += [f"  {count} bad: {cause}" for cause, count in sorted(report.bad.causes.items())]
    if report.bad.files:
        lines.append(f"  worst files: {report.bad.worst_files()}")
    lines += [f"  {path}: its sha256 is not that of the manifest" for path in report.shards]
    return "\n".join(lines)


def _in_threads(read: Callable[[int], Any], source: Source, num_threads: int) -> Iterator:
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(source), CHUNK):
            yield from pool.map(read, range(start, min(start + CHUNK, len(source))))


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_bool("decode", True, "Decode every image instead of only reading it.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config",), processes=False)
    cli.run_command(values, lambda: run(from_config_dict(values.config), values.decode))
