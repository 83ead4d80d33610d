"""Checks an experiment and its data without training: runs every check of clipjax train, and reads the data.

    clipjax check --config=experiments/quickstart.py
    clipjax check --config=experiments/quickstart.py --workdir=runs/quickstart
    clipjax check --config=experiments/clip_b32.py --records=10000 --decode=False

It says what it checked, shows five records of each source (with captions as tokens and labels as class names), and
counts records, classes and the captions' tokens. It lists all errors that it finds, not only the first, and exits with
1 if there are any; otherwise the last line is OK. With --workdir, it also checks that a run there may begin, or
continue from its checkpoint. Nothing is compiled, written or moved. For large data, --records reads a random part of
each source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.check_data import DataUse, report_source, uses_of_data
from clipjax.commands.preflight import Preflight
from clipjax.config import ConfigError, EvaluatorConfig, ExperimentConfig, require
from clipjax.data import mixture
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.probe import Labels
from clipjax.data.sources import open_source
from clipjax.data.tokenizers import Tokenizer
from clipjax.inference.evaluate import check_with_data, errors_of
from clipjax.processes import announce
from clipjax.report.data import SourceReport
from clipjax.storage.data_cache import use_cache
from clipjax.training.check import part_checks


class CheckError(RuntimeError):
    """The experiment cannot be trained as it is; the message lists every error."""


class Errors:
    """The errors found so far, each once, in the order in which they were found."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def caught(self, body: Callable[[], Any]) -> tuple[Any, list[str]]:
        """(body(), or None where it raises an error of clipjax or of the file system; the errors that are new)."""
        before = len(self.messages)
        try:
            return body(), []
        except (ValueError, RuntimeError, OSError) as error:
            if not (type(error).__module__.startswith("clipjax.") or isinstance(error, OSError)):
                raise
            self.add(str(error))
        return None, self.messages[before:]

    def add(self, *messages: str) -> None:
        self.messages += [message for message in dict.fromkeys(messages) if message not in self.messages]

    def raise_all(self) -> None:
        """Raises CheckError if there are any."""
        if self.messages:
            numbered = [f"{number}. {message}" for number, message in enumerate(self.messages, 1)]
            raise CheckError(f"{len(numbered)} error{'s' * (len(numbered) > 1)} found:\n" + "\n".join(numbered))


def run(
    config: ExperimentConfig, workdir: str | Path | None = None, *, decode: bool = True, records: int = 0
) -> dict[str, SourceReport]:
    """Prints what it checks and what the data holds; returns a report for each source.

    workdir: also check whether a run may begin or continue there. decode: decode all images. records: how many records
    of each source to read, drawn at random; 0: all. Raises CheckError listing all errors.
    """
    require(records >= 0, f"--records={records} must be a number of records, or 0 for all.")
    errors, reports = Errors(), {}
    errors.caught(lambda: use_cache(config.data.cache_dir, config.data.cache_gib))
    if config.data.decoder == "auto":  # as train does; one that is named but missing is an error of the list
        config = dataclasses.replace(config, data=choose_decoder(config.data))
    start_from = Preflight(config, workdir)
    machine = dict(num_devices=jax.device_count(), process_count=jax.process_count())
    (name, refuse), *others = start_from.before_data()
    try:
        parts = part_checks(config, **machine)
    except ConfigError:  # which `refuse` reports
        parts = ()
    report_check(name, refuse, errors, parts)
    fits = not errors.messages
    for name, refuse in others:
        report_check(name, refuse, errors)
    tokenizer, _ = errors.caught(lambda: start_from.tokenizer)
    for use in uses_of_data(config):
        found, new = errors.caught(lambda use=use: check_source(use, config, tokenizer, errors, decode, records))
        if found is None:
            announce(f"{use.name}: cannot be read: {new[0] if new else 'see above'}")
        else:
            reports[use.name] = found
    if fits:  # it makes examples, with settings that must have been checked
        report_check("training data", start_from.check_training_data, errors)
    errors.raise_all()
    announce("OK")
    return reports


def report_check(
    name: str, refuse: Callable[[], str], errors: Errors, parts: Sequence[Callable[[], object]] = ()
) -> None:
    """Runs a check and prints a line about it, or nothing for a check that does not apply.

    parts: what `refuse` checks, one by one, so that each adds its error.
    """
    before = len(errors.messages)
    for part in parts:
        errors.caught(part)
    line, _ = errors.caught(refuse)
    new = errors.messages[before:]
    if line:
        announce(f"{name}: {line}")
    elif new:
        announce(f"{name}: " + "\n".join(["wrong", *(f"  {message}" for message in new)]))
    elif line is None and before:
        announce(f"{name}: not checked, because of an error above")


def check_source(
    use: DataUse, config: ExperimentConfig, tokenizer: Tokenizer | None, errors: Errors, decode: bool, records: int
) -> SourceReport:
    """Reads a source, prints what it holds, and adds what training or evaluators would refuse to `errors`."""
    with mixture.errors_of(use.field):
        source = open_source(use.source)
    report = report_source(use, source, config, tokenizer, decode=decode, most=records)
    share = report.bad.causes.total() / report.read
    if use.trains and share > config.data.max_bad_share or not report.good:
        errors.add(
            f"{use.name}: {share:.1%} of the records are bad ({dict(report.bad.causes)}); a run stops above "
            f"config.data.max_bad_share={config.data.max_bad_share}. Repair or rebuild the data, or raise the share."
        )
    if report.shards:
        errors.add(f"{use.name}: {len(report.shards)} damaged shards: {', '.join(report.shards)}. Copy them again.")
    labels = Labels(np.array([*report.labels], np.int64), report.read == report.records)
    for name, evaluator in use.evaluators.items():

        def check_one(name: str = name, evaluator: EvaluatorConfig = evaluator) -> None:
            with errors_of(name):
                check_with_data(evaluator, source, lambda: labels)

        errors.caught(check_one)
    return report


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "Also check that a run may begin or continue there.", flag_values=values)
        flags.DEFINE_bool("decode", True, "Decode every image instead of only reading it.", flag_values=values)
        flags.DEFINE_integer("records", 0, "Records to read of each source, at random; 0: all.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config",), processes=False)
    if values.workdir == "":
        cli.fail("--workdir= is empty; give it a value.")

    def body() -> None:
        errors = Errors()
        config, _ = errors.caught(lambda: cli.experiment_of(values))
        errors.raise_all()
        run(config, values.workdir, decode=values.decode, records=values.records)

    cli.run_command(values, body)
