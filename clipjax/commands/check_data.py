"""Reads all data of an experiment once, shows samples of it, and reports what is wrong with it, before a run meets it.

    clipjax check-data --config=experiments/emoji.py
    clipjax check-data --config=experiments/emoji.py --decode=False --config.data.num_threads=16

It reads every record of the training source (or of each part of a mixture) and of the evaluators' sources, decodes its
image, and compares shards with the sha256 in their manifest. It shows five records of each source, with captions as
tokens, and counts classes and the captions' tokens. Bad records are counted by cause and bad shards are named; the exit
code is then 1. clipjax check reads the data too, and checks everything else.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Sequence

from absl import flags

from clipjax.commands import flags as cli
from clipjax.config import ConfigError, EvaluatorConfig, ExperimentConfig, SourceConfig, require
from clipjax.data.mixture import errors_of
from clipjax.data.sources import Source, open_source
from clipjax.data.tokenizers import Tokenizer, make_tokenizer
from clipjax.processes import announce
from clipjax.report.data import SourceReport, describe, describe_prompts, describe_samples, describe_source, read_source
from clipjax.storage.data_cache import use_cache


class BadDataError(RuntimeError):
    """Records or shards are bad; the message counts them."""


@dataclasses.dataclass(frozen=True)
class DataUse:
    """A source, and what reads it."""

    name: str  # of all that read it, joined by "and"
    source: SourceConfig
    evaluators: dict[str, EvaluatorConfig]
    trains: bool
    field: str  # that names it first


def run(config: ExperimentConfig, decode: bool = True) -> dict[str, SourceReport]:
    """Prints a report for each source and returns them by name.

    Raises BadDataError if anything is bad, ManifestError for a source that cannot be opened.
    """
    use_cache(config.data.cache_dir, config.data.cache_gib)
    uses = uses_of_data(config)
    require(len(uses) > 0, "config.data.train.path and config.eval.evaluators name no data to check.")
    tokenizer = None
    if config.tokenizer.path:
        try:
            tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
        except ConfigError as error:
            announce(f"Captions are not shown as tokens: {error}")
    reports = {}
    for use in uses:
        with errors_of(use.field):
            opened = open_source(use.source)
        reports[use.name] = report_source(use, opened, config, tokenizer, decode=decode)
    bad = sum(report.bad.causes.total() for report in reports.values())
    shards = sum(len(report.shards) for report in reports.values())
    if bad or shards:
        raise BadDataError(f"{bad} bad record(s) and {shards} damaged shard(s) in {len(reports)} source(s); see above.")
    return reports


def uses_of_data(config: ExperimentConfig) -> list[DataUse]:
    """Each source of an experiment once, with everything that reads it."""
    training = {"train": config.data.train} if config.data.train.path else {}
    training |= {f"train, {name}": part.source for name, part in config.data.mixture.items()}
    names: dict[SourceConfig, list[str]] = collections.defaultdict(list)
    fields: dict[SourceConfig, str] = {}
    for name, source in training.items():
        names[source].append(name)
        part = name.removeprefix("train, ")
        fields.setdefault(source, "config.data.train" if part == name else f"config.data.mixture.{part}.source")
    for name, evaluator in config.eval.evaluators.items():
        for field, source in evaluator.sources.items():
            key = name if field == "source" else f"{name}.{field}"
            fields.setdefault(source, f"config.eval.evaluators.{key}")
            names[source].append(f"evaluator {key}" if key in training else key)
    return [
        DataUse(
            " and ".join(of_source),
            source,
            {name: one for name, one in config.eval.evaluators.items() if one.source == source},
            source in training.values(),
            fields[source],
        )
        for source, of_source in names.items()
    ]


def report_source(
    use: DataUse,
    opened: Source,
    config: ExperimentConfig,
    tokenizer: Tokenizer | None,
    *,
    decode: bool = True,
    most: int = 0,
) -> SourceReport:
    """Prints five records of a source, then reads all of it, or `most` records, and prints what it holds."""
    names = class_names_of(opened, use.evaluators.values())
    announce(f"{describe_source(use.name, use.source)}: {len(opened)} records, such as")
    announce(describe_samples(opened, tokenizer, names))
    report = read_source(opened, config.data.num_threads, decode=decode, tokenizer=tokenizer, most=most)
    length = config.model.text.context_length
    announce(describe(report, context_length=length, class_names=names))
    for name, evaluator in use.evaluators.items() if tokenizer else ():
        with contextlib.suppress(ConfigError):  # told where evaluators are checked
            if prompts := evaluator.prompts(opened.class_names, getattr(opened, "templates", ())):
                announce(describe_prompts(name, prompts, tokenizer, length))
    return report


def class_names_of(source: Source, evaluators: Iterable[EvaluatorConfig]) -> Sequence[str]:
    """What the source's labels index: for the first evaluator that has names, or else for the source itself."""
    for evaluator in evaluators:
        try:
            if names := evaluator.names_of_labels(source.class_names):
                return names
        except ConfigError:  # told where evaluators are checked
            continue
    return source.class_names


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_bool("decode", True, "Decode every image instead of only reading it.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config",), processes=False)
    cli.run_command(values, lambda: run(cli.experiment_of(values), values.decode))
