"""The training run: restore or start, train, and draw a picture of what was learned.

    clipjax train --config=experiments/quickstart.py --workdir=runs/quickstart
    clipjax train --config=experiments/emoji.py --config.loss.name=sigmoid --workdir=runs/emoji

Started again with the same --workdir, a run continues from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.config import ExperimentConfig, from_config_dict, to_json_dict
from clipjax.data.bad_records import DataError
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.mixture import open_train
from clipjax.data.pipeline import make_train_iterator
from clipjax.data.prefetch import prefetch_to_mesh
from clipjax.data.tokenizers import make_tokenizer
from clipjax.files import write_text
from clipjax.inference.evaluate import check_best_metric, make_evaluate, numbers_of
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import patch_budget
from clipjax.processes import announce, gather_json
from clipjax.report.summary import draw_summary, make_held_out, record_before
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.bad_records_log import BadRecordsLog, add_causes, describe_bad_records
from clipjax.runs.fingerprint import fingerprint
from clipjax.runs.integrity import set_aside_damaged
from clipjax.runs.lock import run_lock
from clipjax.runs.metrics_log import MetricsLog
from clipjax.runs.resume import restore_or_create
from clipjax.runs.weights import load_teacher
from clipjax.training.check import check, check_tokenizer
from clipjax.training.loop import loop
from clipjax.training.precomputed import check_image_embeddings
from clipjax.training.state import eval_variables
from clipjax.training.step import compile_step


def run(config: ExperimentConfig, workdir: str | Path) -> dict[str, float]:
    """Trains to config.total_steps, from the last checkpoint in workdir if there is one.

    Writes to workdir: config.json, metrics.jsonl, bad_records.jsonl, TensorBoard events, checkpoints/, summary.png.
    Returns the last evaluation's metrics, flat ("evaluator/metric"); {} when preempted before the end.

    Raises before compiling: ConfigError or FingerprintError; RunLockError for a workdir that is in use or cannot be
    written to; CheckpointError when no checkpoint is intact. Raises later: TrainingError after
    config.optimizer.max_nonfinite_steps skipped steps in a row; DataError when too many records are bad;
    CheckpointError when a checkpoint could not be written.
    """
    check(config, num_devices=jax.device_count(), process_count=jax.process_count())
    with run_lock(workdir):
        return locked_run(config, Path(workdir))


def locked_run(config: ExperimentConfig, workdir: Path) -> dict[str, float]:
    """run, once the workdir is this run's alone."""
    config = dataclasses.replace(config, data=choose_decoder(config.data))
    mesh = make_mesh(config.mesh)
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
    check_tokenizer(config, tokenizer)
    own_fingerprint = fingerprint(config, tokenizer)
    batches = open_batches(config, tokenizer)
    set_aside_damaged(workdir)
    results_of = make_evaluate(config, mesh, tokenizer)
    evaluate = lambda variables: numbers_of(results_of(variables))  # noqa: E731
    draws = config.log.figures and config.eval.evaluators
    held_out = make_held_out(config, mesh, tokenizer) if draws else None
    step_fn = compile_step(config, mesh, load_teacher(config, mesh, own_fingerprint))

    with checkpoints.open_checkpoints(workdir, config.checkpoint) as manager:
        state = restore_or_create(manager, config, mesh, own_fingerprint, batches)
        check_image_embeddings(config, state, own_fingerprint)
        start = int(state.step)
        bad_log = BadRecordsLog(workdir, batches.met, resume_step=start, process_index=jax.process_index())
        if jax.process_index() == 0:
            write_text(workdir / "config.json", json.dumps(to_json_dict(config), indent=2, sort_keys=True))
        with contextlib.closing(MetricsLog(workdir, tensorboard=config.log.tensorboard, resume_step=start)) as log:
            if start == 0:
                results = evaluate(eval_variables(state))
                check_best_metric(config, results)
                log.write(0, results)
                if held_out:
                    record_before(workdir, held_out(eval_variables(state)), results)
            stream = prefetch_to_mesh(batches, batch_sharding(mesh), config.data.prefetch)
            with contextlib.closing(stream), bad_log.kept_on(DataError):
                state, results, data_state = loop(
                    config,
                    state,
                    step_fn,
                    stream,
                    evaluate=evaluate,
                    save=functools.partial(checkpoints.save, manager, config=config, fingerprint=own_fingerprint),
                    log=log.write,
                    step_done=bad_log.write,
                    data_metrics=lambda step, data_state: bad_counts(data_state) | batches.progress(step),
                )
        with checkpoints.clear_errors(manager):
            manager.wait_until_finished()

    if int(state.step) < config.total_steps:
        announce(f"SIGTERM: saved step {int(state.step)} in {workdir}; the same command continues from there.")
        return {}
    if data_state:
        announce(describe_bad_records(workdir, all_causes(data_state)))
    if held_out:
        draw_summary(workdir, held_out(eval_variables(state)), results)
    return results


def open_batches(config: ExperimentConfig, tokenizer: Any) -> Any:
    """This process's training iterator, at its first batch; see data/pipeline.py."""
    return make_train_iterator(
        config.data,
        source=open_train(config.data),
        tokenizer=tokenizer,
        image_size=config.model.image.image_size,
        budget=patch_budget(config.model.image),
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def all_causes(data_state: dict[str, Any]) -> dict[str, int]:
    """{cause: records replaced} over all processes; they call it together."""
    return add_causes(gather_json(data_state["bad"]))


def bad_counts(data_state: dict[str, Any]) -> dict[str, float]:
    """all_causes, as metrics.jsonl names them."""
    return {f"bad_records/{cause}": count for cause, count in all_causes(data_state).items()}


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config", "workdir"))
    cli.run_command(values, lambda: run(from_config_dict(values.config), values.workdir))
