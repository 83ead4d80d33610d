"""What `clipjax eval` does with an open checkpoint, once or for each that a run writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from clipjax.config import ConfigError, EvaluationConfig, EvaluatorConfig, ExperimentConfig, nearest, require
from clipjax.files import printable
from clipjax.inference.provenance import absolute_path
from clipjax.inference.session import EvalSession, Record
from clipjax.json_files import read_json_object
from clipjax.processes import announce, gather_json
from clipjax.report.evaluation import RECORDS, ResultFolder, headline, results_document, write_report
from clipjax.report.published import refuse_one_file
from clipjax.report.suites import SUITES
from clipjax.report.table import format_table
from clipjax.runs import Run
from clipjax.runs.own_files import fixed_part
from clipjax.runs.steps import absolute
from clipjax.storage import as_path, is_remote


class EvaluationError(RuntimeError):
    """Some evaluators have no result; the message names them. Those of the others are written."""


def results_folder(workdir: Path, step: int, part: str = "") -> Path:
    """Where a checkpoint's results are; part: what of, for data that a user points at, or "" for the run's own."""
    folder = workdir / "eval" / str(step)
    return folder / part if part else folder


def refuse_other_data(folder: Path, session: EvalSession, part: str) -> None:
    """Raises ConfigError where a folder has results of data elsewhere that are called `part` as well.

    Data that are no longer at the other path were moved: their results stay, or are replaced, as usual. The first
    process decides, because others may not see the folder.
    """
    if message := gather_json(_other_data(folder, session, part) if jax.process_index() == 0 else "")[0]:
        raise ConfigError(message)


def _other_data(folder: Path, session: EvalSession, part: str) -> str:
    for name, evaluator in session.config.eval.evaluators.items():
        split = read_json_object(folder / RECORDS / f"{name}.json").get("provenance", {}).get("split", {})
        for field, source in evaluator.sources.items():
            before, now = split.get(field, {}).get("path", ""), absolute_path(source.path)
            if before and _real(before) != _real(now) and as_path(fixed_part(before)).exists():
                return (
                    f"{folder} has results on {before}, and --data names {now}: both are called '{part}', and "
                    "new results would replace those. Name another folder with --out (without --watch), or move this "
                    "one away."
                )
    return ""


def _real(path: str) -> str:
    return path if is_remote(as_path(path)) else os.path.realpath(path)


def evaluate_into(
    out: Path, opened: Run, session: EvalSession, *, model: str = "", pretrained: str = "", redo: bool = False
) -> dict[str, Any]:
    """Evaluates an open checkpoint, writes its files and prints its table; see run."""
    first = jax.process_index() == 0
    refuse_one_file(session.config.eval.evaluators)
    folder = ResultFolder(
        out,
        session.config.eval.evaluators,
        model=model or absolute(opened.directory).name,
        pretrained=pretrained or f"step{opened.step}",
        suite=session.policy.suite,
    )
    several = len(session.sources) > 1
    tell_missing(session)

    def done(name: str, evaluator: EvaluatorConfig, record: Record, stored: bool) -> None:
        if first:
            folder.write(name, evaluator, record)
        if several or stored:
            announce(headline(name, record) + (", evaluated before; --redo evaluates it again" if stored else ""))

    evaluation = session.evaluate(opened, stored=None if redo else shared(folder.stored() if first else {}), done=done)
    document = results_document(opened, evaluation)
    if first:
        before = read_json_object(out / "results.json").get("results", {})
        write_report(out, opened, evaluation, document)
        table = "\n".join(filter(None, [format_table(evaluation.results), *folder.summary()]))
        print(printable(table, lines=False))
        print(f"Wrote {out / 'results.json'} and {out / 'report.html'}", flush=True)
        if others := sorted(before.keys() - evaluation.results.keys()):
            print(f"results.json had those of {', '.join(others)}; they stay in {out / RECORDS}.", flush=True)
    return document


def shared(stored: dict[str, Record]) -> dict[str, Record]:
    """The first process's records, on every process."""
    return {name: Record(*fields) for name, fields in gather_json(stored)[0].items()}


def tell_missing(session: EvalSession) -> None:
    """Prints what will not be evaluated."""
    total = len(session.config.eval.evaluators)
    if session.absent or session.broken:
        announce(f"{total} evaluators: {len(session.sources)} have their data.")
    if session.absent:
        announce(f"Absent, {len(session.absent)}: " + ", ".join(session.absent))
    for name, message in session.broken.items():
        announce(f"Broken: {name}: {message}")


def refuse_broken(document: dict[str, Any]) -> None:
    """Raises EvaluationError where a document of results names evaluators without a result."""
    if broken := document.get("broken"):
        count = len(document["results"])
        raise EvaluationError(
            f"{len(broken)} evaluators have no result ({count} have):\n"
            + "".join(f"  {name}: {message}\n" for name, message in broken.items())
            + "Repair their data and run the command again: it evaluates only what is missing."
        )


def check_suite(config: ExperimentConfig | EvaluationConfig | None) -> None:
    """Refuses a suite that is not known. Raises ConfigError."""
    suite = config.suite if isinstance(config, EvaluationConfig) else ""
    require(not suite or suite in SUITES, f"config.suite='{suite}' is unknown.{nearest(suite, SUITES)}")
