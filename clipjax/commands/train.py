"""Trains a dual encoder, or continues a stopped run, and draws a picture of what was learned.

    clipjax train --config=experiments/quickstart.py --workdir=runs/quickstart
    clipjax train --config=experiments/emoji.py --config.loss.name=sigmoid --workdir=runs/emoji

Run the same command again to continue from the last checkpoint; a finished run says so and stops. clipjax check
--config=... --workdir=... says beforehand whether a run can start, and shows its data.

--config.log.profile=100:105 writes a trace of steps 100 to 105 to WORKDIR/profile, for XProf and TensorBoard. kill
-USR2 PID traces the next five steps of a running process. At its end, a run prints where its time went, over all its
starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from clipjax import signals, storage
from clipjax.commands import flags as cli
from clipjax.commands.preflight import Preflight
from clipjax.commands.train_end import conclude
from clipjax.commands.train_lines import describe_finished, describe_stop, last_results
from clipjax.config import ExperimentConfig, to_json_dict
from clipjax.data.bad_records import DataError
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.prefetch import prefetch_to_mesh
from clipjax.files import write_text
from clipjax.inference.embed import make_embed
from clipjax.inference.evaluate import check_best_metric, make_evaluate, numbers_of_state
from clipjax.machine.memory import largest_of, peak_memory
from clipjax.mesh import batch_sharding
from clipjax.planning.flops import BatchFlops
from clipjax.planning.peaks import peak_of_mesh
from clipjax.processes import Largest, announce, gather_json, meet
from clipjax.report.held_out import HeldOut
from clipjax.report.summary import Recorder, lacks_report
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.accounts import Accounts, process_started
from clipjax.runs.advice import AdviceLog
from clipjax.runs.bad_records_log import BadRecordsLog, add_causes
from clipjax.runs.goodput import GoodputLog
from clipjax.runs.integrity import set_aside_damaged
from clipjax.runs.lock import run_lock
from clipjax.runs.metrics_log import MetricsLog
from clipjax.runs.own_files import keep_files
from clipjax.runs.resume import restore_or_create
from clipjax.runs.run import refuse_as_workdir
from clipjax.runs.sinks import open_sinks
from clipjax.runs.spool import Spool, spooled
from clipjax.runs.watchdog import Watchdog
from clipjax.runs.weights import load_teacher
from clipjax.training.advisor import look_at_batch
from clipjax.training.check import check
from clipjax.training.cut import cut_batches
from clipjax.training.loop import loop
from clipjax.training.precomputed import check_image_embeddings
from clipjax.training.profile import Profiler
from clipjax.training.state import TrainState, reported_variables
from clipjax.training.step import compile_step


def run(config: ExperimentConfig, workdir: str | Path, *, started: float | None = None) -> dict[str, float]:
    """Trains to config.total_steps, from the last checkpoint in workdir if there is one.

    Writes to workdir: config.json, copies of the tokenizer and of files of class names (clipjax.runs.own_files),
    metrics.jsonl, goodput.jsonl, bad_records.jsonl, TensorBoard events, checkpoints/, snapshots/, profile/, summary.png
    and report.html. Returns the last evaluation's metrics, flat ("evaluator/metric"); {} when preempted before the end.

    started: when the start of the run began, in seconds since the epoch, for the accounts of its time; None: now.

    Raises before compiling, and before it changes a checkpoint: ConfigError, FingerprintError, CheckpointError,
    ManifestError or DataError for what clipjax/commands/preflight.py checks; RunLockError for a workdir that is in use
    or cannot be written to. Raises later: TrainingError after
    config.optimizer.max_nonfinite_steps skipped steps in a row; DataError when too many records are bad;
    CheckpointError when a checkpoint could not be written.
    """
    accounts = Accounts(started)
    check(config, num_devices=jax.device_count(), process_count=jax.process_count())
    workdir = storage.as_path(workdir)
    refuse_as_workdir(workdir)
    with (
        run_lock(workdir) as check_held,
        spooled(workdir, check_held) as spool,
        Watchdog(config.log, workdir, accounts) as dog,
    ):
        return locked_run(config, workdir, check_held, accounts, spool, dog)


def locked_run(
    config: ExperimentConfig,
    workdir: Path,
    check_held: Callable[[], None],
    accounts: Accounts,
    spool: Spool,
    dog: Watchdog,
) -> dict[str, float]:
    """run, once the workdir is this run's alone. check_held: raises where it no longer is; see run_lock.

    spool: where files that grow are written.
    """
    checked = functools.partial(checking, check_held)
    start_from, complete = look_before(config, workdir)
    config = start_from.config
    if complete:
        return last_results(config, workdir, start_from.restart.step)
    mesh, tokenizer, own_fingerprint = start_from.mesh, start_from.tokenizer, start_from.fingerprint
    batches = start_from.batches
    sources, embed = start_from.eval_sources, make_embed(config, mesh)
    results_of = make_evaluate(config, mesh, tokenizer, sources, embed)
    held_out = HeldOut(config, mesh, tokenizer, sources, embed) if config.log.figures and sources else None
    resume_step = start_from.restart.step if start_from.restart else 0
    goodput = GoodputLog(spool.folder, accounts, resume_step, check_held)
    saving = checkpoints.open_checkpoints(workdir, config.checkpoint, before_whole=spool.upload)
    with goodput, saving as manager:
        with accounts("restore" if start_from.restart else "start"):
            state = restore_or_create(manager, config, mesh, own_fingerprint, batches)
        check_image_embeddings(config, state, own_fingerprint)
        teacher = load_teacher(config, mesh, own_fingerprint)
        with accounts("compile"):
            step_fn = None if start_from.finished else compile_step(config, mesh, teacher)
        start = int(state.step)
        kept = keep_files(config, workdir, copy=jax.process_index() == 0)
        bad_log = BadRecordsLog(spool.folder, batches.met, resume_step=start, process_index=jax.process_index())
        if jax.process_index() == 0:
            check_held()
            write_text(workdir / "config.json", json.dumps(to_json_dict(kept.config), indent=2, sort_keys=True))
        advice = AdviceLog(config, spool.folder, start, lambda: look_at_batch(dog.batch))
        with (
            open_sinks(config, spool.folder, resume_step=start) as sinks,
            contextlib.closing(MetricsLog(spool.folder, resume_step=start, also=(sinks.write, advice.write))) as log,
        ):
            recorder = Recorder(workdir, held_out, sinks.picture, start, advice.embeddings)
            evaluate = goodput.during("evaluation", functools.partial(numbers_of_state, config, results_of))
            record = goodput.during("evaluation", checked(recorder.record))
            evaluate_before_training(config, state, evaluate, log, record)
            streaming = batches_on_mesh(config, mesh, teacher, batches, goodput)
            at_once = signals.saying(lambda: describe_stop(workdir, "at once"))  # a second signal
            with at_once, signals.noting() as noted, streaming as stream, bad_log.kept_on(DataError):
                accounts.enter("step")
                save = functools.partial(
                    spool.before_save(checkpoints.save),
                    manager,
                    config=kept.config,
                    fingerprint=own_fingerprint,
                    paths=kept.paths,
                )
                done = loop(
                    config,
                    state,
                    goodput.stepping(
                        dog.compiling(step_fn), compile_seconds := lambda: getattr(step_fn, "compile_seconds", 0.0)
                    ),
                    dog.waiting(stream),
                    evaluate=evaluate,
                    evaluated=record,
                    save=goodput.during("checkpoint", checked(save)),
                    log=checked(log.write),
                    step_done=lambda step: (bad_log.write(step), goodput.step_done(step), dog.step_done(step)),
                    profiler=Profiler(config, spool.folder, start, lambda: accounts("other")),
                    data_metrics=functools.partial(host_metrics, batches, goodput),
                    compile_seconds=compile_seconds,
                    flops=BatchFlops(config, teacher),
                    peak=peak_of_mesh(mesh, config.model.dtype),
                )
                with checkpoints.clear_errors(manager), accounts("checkpoint"):
                    checked(manager.wait_until_finished)()
            return conclude(config, workdir, done, noted, sinks, recorder, goodput, spool, check_held)


def evaluate_before_training(
    config: ExperimentConfig, state: TrainState, evaluate: Callable, log: MetricsLog, record: Callable[..., None]
) -> None:
    """The evaluation of step 0, unless the run continues; all processes meet before it and after it."""
    meet("the first evaluation")
    if int(state.step) == 0:
        results = evaluate(state)
        check_best_metric(config, results)
        log.write(0, results)
        record(reported_variables(state, config.eval.weights), 0)
    meet("the first step")


def look_before(config: ExperimentConfig, workdir: Path) -> tuple[Preflight, bool]:
    """(what the run starts from, which nothing refuses; whether it has made all its steps, and its report)."""
    start_from = Preflight(dataclasses.replace(config, data=choose_decoder(config.data)), workdir)
    config = start_from.config
    announce(start_from.dtype_line)
    for _, refuse in start_from.before_data():
        refuse()
    if start_from.finished:
        announce(describe_finished(config, workdir, start_from.restart.step))
        if not (config.log.figures and lacks_report(workdir, start_from.restart.step)):
            return start_from, True
    for _, refuse in start_from.of_data():
        refuse()
    set_aside_damaged(workdir, start_from.intact)
    return start_from, False


@contextlib.contextmanager
def batches_on_mesh(
    config: ExperimentConfig, mesh: Mesh, teacher: Any, batches: Iterator[tuple[dict, dict]], goodput: GoodputLog
) -> Iterator[Iterator[tuple[Any, dict[str, Any], float]]]:
    """The stream that the loop reads: this process's batches, their texts cut, made global ahead of the steps."""
    largest = Largest()
    local = cut_batches(config, mesh, teacher, batches, largest)
    stream = prefetch_to_mesh(local, batch_sharding(mesh), config.data.prefetch, goodput.busy)
    with contextlib.closing(stream), contextlib.closing(largest):  # a wait for other processes ends first
        yield goodput.waiting(stream)


def checking(check_held: Callable[[], None], write: Callable[..., None]) -> Callable[..., None]:
    """write, which first makes sure that the workdir is still this run's."""

    def call(*args: Any, **kwargs: Any) -> None:
        check_held()
        try:
            write(*args, **kwargs)
        except (OSError, RuntimeError):
            check_held()  # what a removed workdir leads to
            raise

    return call


def host_metrics(batches: Any, goodput: GoodputLog, step: int, data_state: dict[str, Any]) -> dict[str, float]:
    """What a line of metrics.jsonl says about the hosts: data, bad records, memory, goodput. Called together."""
    told = gather_json((data_state["bad"], peak_memory()))
    bad = {f"bad_records/{cause}": count for cause, count in add_causes(causes for causes, _ in told).items()}
    goodput.memory = largest_of([memory for _, memory in told])
    peaks = {f"peak_{name}_bytes": goodput.memory[name] for name in ("device", "host") if name in goodput.memory}
    return bad | peaks | goodput.share() | batches.progress(step)


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        where = "A folder, gs://... or s3://..., for checkpoints, metrics and pictures."
        flags.DEFINE_string("workdir", None, where, flag_values=values)

    began = process_started()
    values = cli.parse(argv, __doc__, define, required=("config", "workdir"))
    with signals.saying(lambda: describe_stop(values.workdir, "before a new step")):
        cli.run_command(values, lambda: run(cli.experiment_of(values), values.workdir, started=began))
    if signals.last() == signal.SIGINT:  # the run is saved, but commands after it should not follow
        sys.exit(128 + signal.SIGINT)
