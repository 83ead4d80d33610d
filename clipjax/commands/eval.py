"""Evaluates a checkpoint: zero-shot accuracy, retrieval, ... Writes results.json and report.html.

    clipjax eval --checkpoint=runs/quickstart
    clipjax eval --checkpoint=runs/quickstart --step=best --config=experiments/other_eval.py --out=results/

The checkpoint may come from any mesh. --config names the file whose mesh, eval and data sections to use; the default
is the run's own configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.preflight import check_folder
from clipjax.config import ExperimentConfig, from_config_dict
from clipjax.inference.evaluate import evaluate_run
from clipjax.report.evaluation import results_document, write_report
from clipjax.report.table import format_table
from clipjax.runs import open_run


def run(
    checkpoint: str | Path,
    *,
    config: ExperimentConfig | None = None,
    step: str = "latest",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluates one checkpoint of a training run and writes `out`/results.json and report.html.

    Args:
      checkpoint: the workdir of a training run, trained on any mesh.
      config: whose mesh, eval and data sections to use; its model and tokenizer must be the checkpoint's
        (FingerprintError lists what differs). None: the checkpoint's own.
      step: "latest", "best" or a step number.
      out: folder; None: checkpoint/eval/<step>.
    Returns: what results.json holds.
    """
    with open_run(checkpoint, step) as opened:
        out = Path(out) if out else Path(checkpoint) / "eval" / str(opened.step)
        if jax.process_index() == 0:
            check_folder(out, "--out")
        evaluation = evaluate_run(opened, config)
    document = results_document(opened, evaluation)
    if jax.process_index() == 0:
        write_report(out, opened, evaluation, document)
        print(format_table(evaluation.results))
        print(f"Wrote {out / 'results.json'} and {out / 'report.html'}")
    return document


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("checkpoint", None, "The --workdir of a training run.", flag_values=values)
        flags.DEFINE_string("step", "latest", "latest, best, or a step number.", flag_values=values)
        flags.DEFINE_string("out", None, "Result folder; default CHECKPOINT/eval/STEP.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("checkpoint",))

    def body() -> None:
        config = None if values.config is None else from_config_dict(values.config)
        run(values.checkpoint, config=config, step=values.step, out=values.out)

    cli.run_command(values, body)
