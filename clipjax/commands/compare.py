r"""Compares runs, or the cells of a sweep: means over seeds, and which differences the seeds' spread does not explain.

    clipjax compare sweeps/losses
    clipjax compare sweeps/losses --metric=validation/top1 --target=0.3 --baseline=loss=softmax
    clipjax compare runs/emoji-softmax runs/emoji-sigmoid --format=markdown --out=table.md

Runs that differ only in their seed are one line: mean ± standard deviation. Each other line is compared with the
baseline, the first one or --baseline, by a paired t-test over the seeds that both have (Welch's t-test where seeds
differ), corrected by Holm's method for the number of comparisons. Runs that are unfinished, or differ in what they
measure, are named in the notes. Reads config.json, metrics.jsonl and the names of the
checkpoints of each run, and no weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.preflight import check_out
from clipjax.config import require
from clipjax.files import printable, write_text
from clipjax.report.compare import Comparison, compare
from clipjax.report.compare_table import FORMATS, is_comparison
from clipjax.runs.record import read_records
from clipjax.storage import as_path

USAGE = "clipjax compare RUN... | SWEEP [--metric=EVALUATOR/METRIC ...]"
SUFFIXES = {".csv": "csv", ".md": "markdown", ".txt": "text", "": "text"}


def run(
    folders: Sequence[str | Path],
    *,
    metrics: Sequence[str] = (),
    target: float | None = None,
    baseline: str = "",
    step: str = "last",
    format: str = "",
    out: str | Path = "",
) -> list[Comparison]:
    """Prints the comparison of runs and sweeps, or writes it to the file `out`; returns what it shows.

    format: text, csv or markdown; "": by out's ending. For the others see clipjax.report.compare.compare. Raises
    ConfigError, also for an existing file `out` that is no comparison.
    """
    if not format:
        suffix = Path(out).suffix.lower()
        endings = ", ".join(filter(None, SUFFIXES))
        require(
            suffix in SUFFIXES,
            f"--out={out} ends in '{suffix}': expected {endings} or no ending, or pass --format={'|'.join(FORMATS)}.",
        )
        format = SUFFIXES[suffix]
    require(format in FORMATS, f"--format={format} is unknown; expected {', '.join(FORMATS)}.")
    if out:
        out = as_path(out)
        check_out(out, is_comparison, "a comparison that clipjax compare wrote")
    records, notes = read_records([str(folder) for folder in folders])
    found = compare(records, metrics=metrics, target=target, baseline=baseline, step=step, notes=notes)
    text = FORMATS[format](found)
    if out:
        write_text(out, text)
        print(f"Wrote {out}", flush=True)
    else:
        print(printable(text, lines=False), end="", flush=True)
    return found


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_list(
            "metric", [], "EVALUATOR/METRIC, or several; default config.checkpoint.best_metric.", flag_values=values
        )
        flags.DEFINE_float("target", None, "Also show when each run first reached this value.", flag_values=values)
        flags.DEFINE_string("baseline", "", "The setting or run to compare with; default the first.", values)
        flags.DEFINE_string("step", "last", "last, best (by best_metric) or a step number.", flag_values=values)
        flags.DEFINE_string("format", "", "text, csv or markdown; default by --out's ending.", flag_values=values)
        flags.DEFINE_string("out", "", "A file to write instead of printing.", flag_values=values)

    names = [f"--{name}" for name in ("metric", "target", "baseline", "step", "format", "out")]
    folders, others = [], []
    for before, arg in zip(argv, argv[1:], strict=False):
        is_place = bool(arg) and not arg.startswith("-") and before not in names
        (folders if is_place else others).append(arg)
    values = cli.parse([argv[0], *others], __doc__, define, config=False, processes=False)
    if not folders:
        cli.fail(f"usage: {USAGE}. Try --help.")
    cli.check_places([("", folder) for folder in folders])
    jax.config.update("jax_platforms", "cpu")  # no accelerator is used
    with cli.one_line_errors():
        try:
            run(
                folders,
                metrics=values.metric,
                target=values.target,
                baseline=values.baseline,
                step=values.step,
                format=values.format,
                out=values.out,
            )
        except BrokenPipeError:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
