"""The training run: restore or start, train, and draw a picture of what was learned.

    clipjax train --config=experiments/quickstart.py --workdir=runs/quickstart
    clipjax train --config=experiments/emoji.py --config.loss.name=sigmoid --workdir=runs/emoji

Started again with the same --workdir, a run continues from its last checkpoint; a finished run says so and stops.
clipjax check --config=... --workdir=... says beforehand whether a run can start, and shows its data.
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

from clipjax import signals
from clipjax.commands import flags as cli
from clipjax.commands.preflight import Preflight
from clipjax.config import ExperimentConfig, from_config_dict, to_json_dict
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
from clipjax.report.goodput import describe_goodput
from clipjax.report.held_out import HeldOut
from clipjax.report.summary import REPORT, SUMMARY, Recorder, lacks_report
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.accounts import Accounts, process_started
from clipjax.runs.advice import AdviceLog
from clipjax.runs.bad_records_log import BadRecordsLog, add_causes, describe_bad_records
from clipjax.runs.goodput import GoodputLog, read_goodput
from clipjax.runs.integrity import set_aside_damaged
from clipjax.runs.lock import run_lock
from clipjax.runs.metrics_log import MetricsLog, read_metrics
from clipjax.runs.own_files import keep_files
from clipjax.runs.resume import restore_or_create
from clipjax.runs.run import refuse_as_workdir
from clipjax.runs.sinks import open_sinks
from clipjax.runs.sweep import saved_step
from clipjax.runs.watchdog import Watchdog
from clipjax.runs.weights import load_teacher
from clipjax.training.advisor import look_at_batch
from clipjax.training.check import check
from clipjax.training.cut import cut_batches
from clipjax.training.loop import loop
from clipjax.training.precomputed import check_image_embeddings
from clipjax.training.profile import Profiler
from clipjax.training.state import RAW, eval_variables
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
    refuse_as_workdir(workdir)
    with run_lock(workdir) as check_held, Watchdog(config.log, workdir, accounts) as dog:
        return locked_run(config, Path(workdir), check_held, accounts, dog)


def locked_run(
    config: ExperimentConfig, workdir: Path, check_held: Callable[[], None], accounts: Accounts, dog: Watchdog
) -> dict[str, float]:
    """run, once the workdir is this run's alone. check_held: raises where it no longer is; see run_lock."""
    checked = functools.partial(checking, check_held)
    config = dataclasses.replace(config, data=choose_decoder(config.data))
    start_from = Preflight(config, workdir)
    config = start_from.config
    announce(start_from.dtype_line)
    for _, refuse in start_from.before_data():
        refuse()
    if start_from.finished:
        announce(describe_finished(config, workdir, start_from.restart.step))
        if not (config.log.figures and lacks_report(workdir)):
            return last_results(config, workdir, start_from.restart.step)
    for _, refuse in start_from.of_data():
        refuse()
    set_aside_damaged(workdir, start_from.intact)

    mesh, tokenizer, own_fingerprint = start_from.mesh, start_from.tokenizer, start_from.fingerprint
    batches = start_from.batches
    sources, embed = start_from.eval_sources, make_embed(config, mesh)
    results_of = make_evaluate(config, mesh, tokenizer, sources, embed)
    held_out = HeldOut(config, mesh, tokenizer, sources, embed) if config.log.figures and sources else None
    resume_step = start_from.restart.step if start_from.restart else 0
    goodput = GoodputLog(workdir, accounts, resume_step, check_held)
    with goodput, checkpoints.open_checkpoints(workdir, config.checkpoint) as manager:
        with accounts("restore" if start_from.restart else "start"):
            state = restore_or_create(manager, config, mesh, own_fingerprint, batches)
        check_image_embeddings(config, state, own_fingerprint)
        teacher = load_teacher(config, mesh, own_fingerprint)
        with accounts("compile"):
            step_fn = None if start_from.finished else compile_step(config, mesh, teacher)
        start = int(state.step)
        kept = keep_files(config, workdir, copy=jax.process_index() == 0)
        bad_log = BadRecordsLog(workdir, batches.met, resume_step=start, process_index=jax.process_index())
        if jax.process_index() == 0:
            check_held()
            write_text(workdir / "config.json", json.dumps(to_json_dict(kept.config), indent=2, sort_keys=True))
        advice = AdviceLog(config, workdir, start, lambda: look_at_batch(dog.batch))
        with (
            open_sinks(config, workdir, resume_step=start) as sinks,
            contextlib.closing(MetricsLog(workdir, resume_step=start, also=(sinks.write, advice.write))) as log,
        ):
            recorder = Recorder(workdir, held_out, sinks.picture, start, advice.embeddings)
            evaluate = goodput.during("evaluation", functools.partial(numbers_of_state, config, results_of))
            record = goodput.during("evaluation", checked(recorder.record))
            meet("the first evaluation")
            if start == 0:
                results = evaluate(state)
                check_best_metric(config, results)
                log.write(0, results)
                record(eval_variables(state), 0)
            meet("the first step")
            streaming = batches_on_mesh(config, mesh, teacher, batches, goodput)
            at_once = signals.saying(lambda: describe_stop(workdir, "at once"))  # a second signal
            with at_once, signals.noting() as noted, streaming as stream, bad_log.kept_on(DataError):
                accounts.enter("step")
                save = functools.partial(
                    checkpoints.save, manager, config=kept.config, fingerprint=own_fingerprint, paths=kept.paths
                )
                state, results, data_state = loop(
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
                    profiler=Profiler(config, workdir, start, lambda: accounts("other")),
                    data_metrics=functools.partial(host_metrics, batches, goodput),
                    compile_seconds=compile_seconds,
                    flops=BatchFlops(config, teacher),
                    peak=peak_of_mesh(mesh, config.model.dtype),
                )
                with checkpoints.clear_errors(manager), accounts("checkpoint"):
                    checked(manager.wait_until_finished)()
            accounts.enter("other")
            step = int(state.step)
            if step < config.total_steps:
                sinks.status = "killed"
                name = signals.name_of(noted.number or signal.SIGTERM)  # which another process may have received
                announce(f"{name}: saved step {step} in {workdir}; the same command continues from there.")
                return {}
            goodput.finished = True
            with signals.saying(describe_end(config, workdir), saved=True):
                if number := max(gather_json(noted.number)):
                    announce(f"{signals.name_of(number)}: {describe_end(config, workdir)}")
                    return results
                if data_state:
                    announce(describe_bad_records(workdir, all_causes(data_state)))
                goodput.write()
                if config.log.figures:
                    check_held()
                    recorder.finish(eval_variables(state), step)
                    for name in (SUMMARY, REPORT):
                        sinks.file(workdir / name)
                goodput.close()
                announce(describe_goodput(read_goodput(workdir)) if jax.process_index() == 0 else "")
    return results


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


def describe_stop(workdir: str | Path, when: str) -> str:
    """What the line says about a run that a signal ends without saving."""
    step = saved_step(workdir)
    return f"stopped {when}; {workdir} " + (
        f"has step {step}, and the same command continues from there."
        if step
        else "has no checkpoint, and the same command starts again."
    )


def describe_end(config: ExperimentConfig, workdir: Path) -> str:
    """What a signal's line says after the last step."""
    return f"all {config.total_steps} steps are saved in {workdir}" + (
        "; clipjax report makes the report that is missing." if config.log.figures else "."
    )


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


def describe_finished(config: ExperimentConfig, workdir: Path, step: int) -> str:
    """The line that a restart of a finished run prints."""
    shown = [str(path) for path in (workdir / SUMMARY, workdir / REPORT, workdir / "metrics.jsonl") if path.exists()]
    return (
        f"{workdir} is finished at step {step} (config.total_steps={config.total_steps}); nothing to train: raise "
        f"config.total_steps to go on{', or see ' + ' and '.join(shown) if shown else ''}. "
        f"clipjax eval --checkpoint={workdir} evaluates it."
    )


def last_results(config: ExperimentConfig, workdir: Path, step: int) -> dict[str, float]:
    """The evaluation of a step in metrics.jsonl; {} where there is none."""
    evaluators = {f"{name}{suffix}" for name in config.eval.evaluators for suffix in ("", RAW)}
    return {
        name: value
        for line in read_metrics(workdir)
        if line["step"] == step
        for name, value in line.items()
        if name.partition("/")[0] in evaluators
    }


def all_causes(data_state: dict[str, Any]) -> dict[str, int]:
    """{cause: records replaced} over all processes; they call it together."""
    return add_causes(gather_json(data_state["bad"]))


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
        flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.", flag_values=values)

    began = process_started()
    values = cli.parse(argv, __doc__, define, required=("config", "workdir"))
    with signals.saying(lambda: describe_stop(values.workdir, "before a new step")):
        cli.run_command(values, lambda: run(from_config_dict(values.config), values.workdir, started=began))
    if signals.last() == signal.SIGINT:  # the run is saved, but commands after it should not follow
        sys.exit(128 + signal.SIGINT)
