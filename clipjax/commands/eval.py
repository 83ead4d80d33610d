"""Evaluates a checkpoint: zero-shot accuracy, retrieval, ... Writes results.json and report.html.

    clipjax eval --checkpoint=runs/quickstart
    clipjax eval --checkpoint=runs/quickstart --step=best --config=experiments/other_eval.py --out=results/
    clipjax eval --checkpoint=weights/vit_b32 --config=experiments/eval/clip_benchmark.py:/data/wds
    clipjax eval --checkpoint=weights/vit_b32 --data=/data/photos --split=test
    clipjax eval --checkpoint=runs/quickstart --watch

The checkpoint may come from any mesh, and may be an import. --config names a file of evaluators (eval_config), which
are run with the checkpoint's model, tokenizer and pixels, or an experiment whose mesh, eval and data sections to use;
the default is the run's own configuration. --data names a folder of tars, Parquet files, records or captioned images,
whose labels are classified and whose captions are retrieved: its test split, or all of it where it has no splits; of
such data, --split=validation takes the records that clipjax init holds out. Their results go to a folder of their own,
CHECKPOINT/eval/STEP/DATA. Each evaluator's result is written when it is there, and started again, the command goes on
with those that are missing; --redo evaluates all again. --watch follows a run from another process and evaluates each
new checkpoint until the run has made all its steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from absl import flags

from clipjax import signals
from clipjax.commands import flags as cli
from clipjax.commands.evaluation import (
    EvaluationError,
    check_suite,
    evaluate_into,
    refuse_broken,
    refuse_other_data,
    results_folder,
)
from clipjax.commands.preflight import check_folder
from clipjax.commands.watch import watch
from clipjax.config import EvaluationConfig, ExperimentConfig
from clipjax.inference.looking import data_name, evaluation_of
from clipjax.inference.session import EvalSession
from clipjax.processes import announce
from clipjax.runs import open_run
from clipjax.runs.run import VanishedError
from clipjax.storage import as_path

TRIES = 3  # of a checkpoint that its run removes meanwhile

__all__ = ["EvaluationError", "main", "refuse_broken", "run"]


def run(
    checkpoint: str | Path,
    *,
    config: ExperimentConfig | EvaluationConfig | None = None,
    step: str = "latest",
    out: str | Path | None = None,
    part: str = "",
    model: str = "",
    pretrained: str = "",
    redo: bool = False,
) -> dict[str, Any]:
    """Evaluates one checkpoint of a training run and writes `out`/results.json and report.html.

    Args:
      checkpoint: the workdir of a training run, trained on any mesh, or a directory that clipjax import wrote.
      config: an evaluation, or an experiment whose mesh, eval and data sections to use; the experiment's model and
        tokenizer must be the checkpoint's (FingerprintError lists what differs). None: the checkpoint's own.
      step: "latest", "best" or a step number.
      out: folder; None: checkpoint/eval/<step>/<part>.
      part: the name of what is evaluated on, where results of other evaluations stay beside these; "": none.
      model, pretrained: what result files of published formats call the weights; "": the checkpoint's folder, its step.
      redo: also run evaluators whose results are in `out` already, with the same weights, settings and data.
    Returns: what results.json holds; "broken" names evaluators that failed where config.broken is "skip".
    """
    check_suite(config)
    for left in reversed(range(TRIES)):
        try:
            return _run(checkpoint, config, step, out, part, model=model, pretrained=pretrained, redo=redo)
        except VanishedError as error:  # its run goes on, and keeps the last checkpoints alone
            if step.isdecimal() or not left or jax.process_count() > 1:
                raise
            announce(f"{str(error).partition(': ')[0]}; trying the {'newest' if step == 'latest' else step} instead.")


def _run(
    checkpoint: str | Path,
    config: ExperimentConfig | EvaluationConfig | None,
    step: str,
    out: str | Path | None,
    part: str,
    **options: Any,
) -> dict[str, Any]:
    with open_run(checkpoint, step) as opened:
        folder = as_path(out) if out else results_folder(as_path(checkpoint), opened.step, part)
        if jax.process_index() == 0:
            check_folder(folder, "--out")
        session = EvalSession(opened, config)
        if part:
            refuse_other_data(folder, session, part)
        return evaluate_into(folder, opened, session, **options)


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("checkpoint", None, "A run's --workdir, or an import's directory.", flag_values=values)
        flags.DEFINE_string("step", "latest", "latest, best, or a step number.", flag_values=values)
        flags.DEFINE_string("out", None, "Result folder; default CHECKPOINT/eval/STEP[/DATA].", flag_values=values)
        flags.DEFINE_string("model", "", "The weights' name in published result files.", flag_values=values)
        flags.DEFINE_string("pretrained", "", "Their second name there; default stepN.", flag_values=values)
        flags.DEFINE_string("data", "", "A folder to evaluate on, instead of --config.", flag_values=values)
        flags.DEFINE_string("split", "", "The split of --data; default: test, or all.", flag_values=values)
        flags.DEFINE_bool("redo", False, "Also repeat what has its result.", flag_values=values)
        flags.DEFINE_bool("watch", False, "Follow the run; evaluate each new checkpoint.", flag_values=values)
        flags.DEFINE_float("poll_seconds", 10.0, "--watch: seconds between two looks.", 0.01, flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("checkpoint",), evaluation=True)
    if values.watch and (values.out or values["step"].present):
        cli.fail("--watch evaluates every checkpoint into CHECKPOINT/eval/STEP: leave out --step and --out.")
    for name in ("data", "split"):
        if values[name].present and not values[name].value:
            cli.fail(f"--{name}= is empty; give it a value, or leave it out.")
    if values["split"].present and not values.data:
        cli.fail(
            f"--split={values.split} chooses a split of --data, which is missing. Add --data=FOLDER, or leave --split "
            "out to run the evaluators of the run or of --config."
        )
    if values.data and values.config is not None:
        cli.fail("--data and --config both say what to evaluate; leave one out.")

    def body() -> None:
        if values.data:
            config, part = evaluation_of(values.data, values.split), data_name(values.data, values.split)
        else:
            part = ""
            config = None if values.config is None else cli.experiment_of(values, evaluation=True)
        names = {"model": values.model, "pretrained": values.pretrained, "redo": values.redo, "part": part}
        if values.watch:
            watch(values.checkpoint, config=config, poll_seconds=values.poll_seconds, **names)
        else:
            refuse_broken(run(values.checkpoint, config=config, step=values.step, out=values.out, **names))

    with signals.saying("stopped; what is evaluated is kept, and the same command continues."):
        cli.run_command(values, body)
