"""Writes a page about one or more runs: curves, embedding space, predictions, confusions. It opens from disk.

    clipjax report runs/quickstart
    clipjax report runs/a runs/b --out=both.html
    clipjax report sweeps/losses
    clipjax report imported/clip-b32 --config=experiments/my_eval.py

The page shows what the runs have stored. Where predictions are missing or older than the last checkpoint, the weights
are loaded and make them, if the evaluators' data is there; --nocompute leaves them out. --config names the file whose
mesh, eval and data sections to use; the default is the run's own configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.preflight import check_out
from clipjax.config import ConfigError, ExperimentConfig, require
from clipjax.data.records import ManifestError
from clipjax.inference.embed import make_embed
from clipjax.inference.prepare import prepare_evaluation
from clipjax.processes import announce
from clipjax.report.compare import compare
from clipjax.report.compare_table import FORMATS
from clipjax.report.held_out import HeldOut
from clipjax.report.page import is_page, write_report
from clipjax.report.run_data import RunData, read_runs
from clipjax.report.summary import REPORT
from clipjax.runs import CheckpointError, FingerprintError, open_run
from clipjax.runs.record import read_records
from clipjax.runs.sweep import is_sweep, read_sweep, trained_config
from clipjax.storage import as_path

USAGE = "clipjax report RUN... | SWEEP [--out=report.html]"


def run(
    workdirs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    config: ExperimentConfig | None = None,
    step: str = "latest",
    compute: bool = True,
) -> Path:
    """Writes the page and returns its path.

    Args:
      workdirs: of training runs, directories of imported weights, or sweeps, which stand for their cells.
      out: the file; None: report.html in the only folder that is named or, for several, in the current one.
      config: whose mesh, eval and data sections predictions are made with; None: each run's own.
      step: of the checkpoint that makes predictions where none are stored: "latest", "best" or a number.
      compute: whether weights may be loaded to make what is not stored.
    Raises ConfigError for a folder that is no run, and for an existing file that is no page of clipjax.
    """
    runs = read_runs(runs_in(workdirs))
    out = as_path(out) if out else (as_path(workdirs[0]) / REPORT if len(workdirs) == 1 else Path(REPORT))
    check_out(out, is_page, "a page that clipjax report wrote")
    if compute:
        runs = [with_predictions(found, config, step) for found in runs]
    write_report(out, runs, comparison_of(workdirs) if len(runs) > 1 else "")
    announce(f"Wrote {out}")
    return out


def runs_in(workdirs: Sequence[str | Path]) -> list[Path]:
    """The folders, with the cells that have begun in place of a sweep. Raises ConfigError for a sweep without any."""
    found = []
    for folder in map(as_path, workdirs):
        if is_sweep(folder):
            cells = [folder / cell.path for cell in read_sweep(folder).cells]
            begun = [cell for cell in cells if trained_config(cell) is not None]
            require(bool(begun), f"{folder}: none of the sweep's cells has begun.")
            found += begun
        else:
            found.append(folder)
    return found


def comparison_of(workdirs: Sequence[str | Path]) -> str:
    """The table of `clipjax compare` about these runs, or why there is none."""
    try:
        records, notes = read_records([str(workdir) for workdir in workdirs])
        return FORMATS["text"](compare(records, notes=notes))
    except ConfigError as error:
        return f"The runs cannot be compared: {error}"


def with_predictions(found: RunData, config: ExperimentConfig | None, step: str) -> RunData:
    """A run with the predictions of a checkpoint, where it has stored none of that step; else with the reason."""
    try:
        with open_run(found.directory, step) as opened:
            stored = found.predictions
            if config is None and stored and stored.get("step") == opened.step:
                return found
            if not (config or opened.config).eval.evaluators:
                why = "There are no predictions, because the configuration has no evaluators"
                return _without(found, f"{why}. --config names a file with some." if config is None else f"{why}.")
            announce(f"Loading {found.directory}, step {opened.step}, for predictions")
            config, mesh, tokenizer, sources = prepare_evaluation(opened, config)
            held_out = HeldOut(config, mesh, tokenizer, sources, make_embed(config, mesh))
            variables = opened.variables(mesh)
            snapshots, pairs = found.snapshots, found.pairs
            if not snapshots and len(held_out.indices):
                snapshots, pairs = [held_out.snapshot(variables, opened.step)], held_out.pairs
            made = {"predictions", *(["pairs"] if snapshots else [])}
            missing = {name: why for name, why in found.missing.items() if name not in made}
            predictions = held_out.predictions(variables, opened.step)
            return dataclasses.replace(
                found, predictions=predictions, snapshots=snapshots, pairs=pairs, missing=missing
            )
    except (CheckpointError, ConfigError, FingerprintError, ManifestError, OSError) as error:
        older = f" What is shown is of step {found.predictions['step']}." if found.predictions else ""
        return _without(found, f"No predictions could be made of the checkpoint: {error}{older}")


def _without(found: RunData, why: str) -> RunData:
    if found.predictions:
        announce(f"{found.directory}: {why}")
        return found
    return dataclasses.replace(found, missing={**found.missing, "predictions": why})


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("out", None, "The HTML file; default RUN/report.html.", flag_values=values)
        flags.DEFINE_string("step", "latest", "Checkpoint for predictions: latest, best, a number.", flag_values=values)
        flags.DEFINE_bool("compute", True, "Load weights to make predictions that are not stored.", flag_values=values)

    places, others = [], []
    for before, arg in zip(argv, argv[1:], strict=False):
        is_place = bool(arg) and not arg.startswith("-") and before not in ("--out", "--step", "--config")
        (places if is_place else others).append(arg)
    values = cli.parse([argv[0], *others], __doc__, define, processes=False)
    if not places:
        cli.fail(f"usage: {USAGE}. Try --help.")
    cli.check_places([("", place) for place in places])

    def body() -> None:
        config = None if values.config is None else cli.experiment_of(values)
        run(places, out=values.out, config=config, step=values.step, compute=values.compute)

    cli.run_command(values, body)
