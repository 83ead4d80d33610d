"""The training run: restore or start, step, log, evaluate, checkpoint, and leave cleanly.

    clipjax train --config=experiments/quickstart.py --workdir=runs/quickstart
    clipjax train --config=experiments/emoji.py --config.loss.name=sigmoid --workdir=runs/emoji
    python -m clipjax.commands.train ...                      # the same thing

Started again with the same --workdir, a run goes on where its last checkpoint stands.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh

from clipjax.commands import flags as cli
from clipjax.config import ExperimentConfig, from_config_dict, nearest, require, to_json_dict
from clipjax.data.examples import DataError
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.mixture import open_train
from clipjax.data.pipeline import make_train_iterator
from clipjax.data.prefetch import prefetch_to_mesh
from clipjax.data.tokenizers import make_tokenizer
from clipjax.files import write_text
from clipjax.inference.evaluate import make_evaluate
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import patch_budget, text_tower
from clipjax.processes import Preemption, announce, gather_json, progress_line
from clipjax.report.summary import draw_summary, make_held_out, record_before
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.bad_records_log import BadRecordsLog, add_causes, describe_bad_records
from clipjax.runs.fingerprint import fingerprint
from clipjax.runs.integrity import set_aside_damaged
from clipjax.runs.lock import run_lock
from clipjax.runs.metrics_log import MetricsLog
from clipjax.runs.resume import restore_or_create
from clipjax.training.check import check
from clipjax.training.precomputed import check_image_embeddings
from clipjax.training.state import TrainState, abstract_state, eval_variables
from clipjax.training.step import batch_shapes, lower_step
from clipjax.training.teacher import EmbeddedTeacher, Teacher, load_teacher

# Steps the host may run ahead of the devices: enough to hide dispatch, few enough that a non-finite
# loss is seen soon.
MAX_STEPS_IN_FLIGHT = 2


class TrainingError(RuntimeError):
    """The run stopped itself; the message says why and which checkpoint is intact."""


def run(config: ExperimentConfig, workdir: str | Path) -> dict[str, float]:
    """Trains to config.total_steps, from the last checkpoint in workdir when there is one.

    Writes to workdir: config.json, metrics.jsonl, bad_records.jsonl, TensorBoard events, checkpoints/, summary.png.
    Returns the last evaluation's metrics, flat ("evaluator/metric"); {} when preempted before the end.
    Raises ConfigError or FingerprintError, RunLockError for a workdir that is in use or cannot be written to, and
    CheckpointError when no checkpoint is intact, all before compiling; TrainingError after
    config.optimizer.max_nonfinite_steps skipped steps in a row, DataError when too many records are bad,
    CheckpointError when a checkpoint could not be written.
    """
    check(config, num_devices=jax.device_count(), process_count=jax.process_count())
    with run_lock(workdir):
        return locked_run(config, Path(workdir))


def locked_run(config: ExperimentConfig, workdir: Path) -> dict[str, float]:
    """run, in a workdir that no other run is in."""
    config = dataclasses.replace(config, data=choose_decoder(config.data))
    mesh = make_mesh(config.mesh)
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
    check_tokenizer(config, tokenizer)
    prints = fingerprint(config, tokenizer)
    batches = make_train_iterator(
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
    set_aside_damaged(workdir)
    evaluate = flat(make_evaluate(config, mesh, tokenizer))
    draws = config.log.figures and config.eval.evaluators
    held_out = make_held_out(config, mesh, tokenizer) if draws else None
    step_fn = compile_step(config, mesh, load_teacher(config, mesh, prints))

    with checkpoints.open_checkpoints(workdir, config.checkpoint) as manager:
        state = restore_or_create(manager, config, mesh, prints, batches)
        check_image_embeddings(config, state, prints)
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
            save = functools.partial(checkpoints.save, manager, config=config, fingerprint=prints)
            stream = prefetch_to_mesh(batches, batch_sharding(mesh), config.data.prefetch)
            with contextlib.closing(stream), bad_log.kept_on(DataError):
                state, results = loop(
                    config,
                    state,
                    step_fn,
                    stream,
                    evaluate=evaluate,
                    save=save,
                    log=log,
                    bad_log=bad_log,
                    progress=batches.progress,
                )
        with checkpoints.clear_errors(manager):
            manager.wait_until_finished()
        if int(state.step) < config.total_steps:
            announce(f"SIGTERM: saved step {int(state.step)} in {workdir}; the same command goes on from there.")
            return {}
        if held_out:
            draw_summary(workdir, held_out(eval_variables(state)), results)
    return results


def loop(
    config: ExperimentConfig,
    state: TrainState,
    step_fn: Callable,
    stream: Iterator,
    *,
    evaluate: Callable[[Any], dict[str, float]],
    save: Callable,
    log: MetricsLog,
    bad_log: BadRecordsLog,
    progress: Callable[[int], dict[str, float]],
) -> tuple[TrainState, dict[str, float]]:
    """Steps from state.step to config.total_steps, or to a preemption; returns (state, last evaluation)."""
    total, every = config.total_steps, config.eval.every_steps
    started_at = int(state.step)
    window = Window(config.global_batch_size)
    in_flight: collections.deque = collections.deque()
    results = evaluate(eval_variables(state)) if started_at >= total else {}
    with Preemption() as preemption:
        for step in range(started_at + 1, total + 1):
            batch, data_state, data_wait = next(stream)
            state, metrics = step_fn(state, batch)
            in_flight.append(metrics)
            if len(in_flight) > MAX_STEPS_IN_FLIGHT or step == total:
                stop_if_not_finite(in_flight.popleft(), config)
            window.add(data_wait)
            bad_log.write(step)
            if step == total or step % config.log.every_steps == 0:
                values = {name: float(value) for name, value in metrics.items()} | window.rates()
                bad = add_causes(gather_json(data_state["bad"]))
                values_of_data = {f"bad_records/{cause}": count for cause, count in bad.items()} | progress(step)
                log.write(step, values | values_of_data)
                announce(progress_line(step, total, values))

            preempted = preemption.reached(step)
            evaluates = step == total or (every > 0 and step % every == 0)
            saves = step == total or preempted or step % config.checkpoint.every_steps == 0
            if evaluates:
                results = evaluate(eval_variables(state))
                log.write(step, results)
                if results:  # empty without evaluators
                    announce(f"evaluated step {step}: {headline(results)}")
            if saves:
                save(state, data_state=data_state, metrics=results if evaluates else None)
            if evaluates or saves:
                window.restart()
            if preempted:
                break
            if step == total:
                announce(describe_bad_records(bad_log.path.parent, bad))
    return state, results


def compile_step(config: ExperimentConfig, mesh: Mesh, teacher: Teacher | EmbeddedTeacher | None) -> Callable:
    """(state, batch) -> (state, metrics), compiled, so that the first step is not mistaken for a slow one."""
    started = time.perf_counter()
    state = abstract_state(config, mesh)
    compiled = lower_step(config, mesh, state, teacher).compile()
    extra = (teacher.variables,) if teacher else ()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
    announce(
        f"{parameters:.1f}M parameters, loss {config.loss.name} ({config.loss.comm}), "
        f"global batch {config.global_batch_size}, mesh {dict(mesh.shape)} of {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} process(es); compiled in {time.perf_counter() - started:.1f} s"
    )
    columns = batch_shapes(config, teacher)
    return lambda state, batch: compiled(state, {name: batch[name] for name in columns}, *extra)


def flat(evaluate: Callable[[Any], dict[str, dict]]) -> Callable[[Any], dict[str, float]]:
    """{"retrieval": {"r1": 0.5}} -> {"retrieval/r1": 0.5}, numbers only."""

    def flattened(variables: Any) -> dict[str, float]:
        return {
            f"{name}/{metric}": float(value)
            for name, result in evaluate(variables).items()
            for metric, value in result.items()
            if isinstance(value, int | float)
        }

    return flattened


def stop_if_not_finite(metrics: dict, config: ExperimentConfig) -> None:
    in_a_row = int(metrics["skipped_in_a_row"])
    if in_a_row:
        logging.warning("Loss or gradient not finite: step skipped, %d in a row", in_a_row)
    if in_a_row >= config.optimizer.max_nonfinite_steps:
        raise TrainingError(
            f"The loss or its gradient was not finite for {in_a_row} steps in a row; no parameter was touched "
            "by them, and the last checkpoint is intact. Lower config.optimizer.learning_rate, raise "
            "schedule.warmup_steps, or set config.optimizer.grad_clip_norm=1.0, and run the command again."
        )


def check_best_metric(config: ExperimentConfig, results: dict[str, float]) -> None:
    """Refuses a checkpoint.best_metric that the evaluators do not report. Raises ConfigError."""
    best = config.checkpoint.best_metric
    require(
        not best or best in results, f"config.checkpoint.best_metric='{best}' is not reported.{nearest(best, results)}"
    )


def check_tokenizer(config: ExperimentConfig, tokenizer: Any) -> None:
    """Refuses a tokenizer whose ids the text tower cannot take or pool. Raises ConfigError."""
    text = config.model.text
    require(
        tokenizer.vocab_size <= text.vocab_size,
        f"{config.tokenizer.path} has {tokenizer.vocab_size} pieces, more than "
        f"config.model.text.vocab_size={text.vocab_size}; set vocab_size to at least {tokenizer.vocab_size}.",
    )
    if refuse := text_tower(text).check_tokenizer:
        refuse(text, tokenizer)


def headline(results: dict[str, float]) -> str:
    """The accuracies and recalls at 1 and 5 among an evaluation's numbers; metrics.jsonl has all."""
    shown = {name: value for name, value in results.items() if name.endswith(("top1", "top5", "_r1", "_r5"))}
    return "  ".join(f"{name} {value:.1%}" for name, value in shown.items())


class Window:
    """Rates since the last log line, without the time spent in evaluation and checkpoints."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.started, self.steps, self.waited = time.perf_counter(), 0, 0.0

    def add(self, data_wait: float) -> None:
        self.steps += 1
        self.waited += data_wait

    def rates(self) -> dict[str, float]:
        """images_per_second, seconds_per_step and data_wait (share of the time, 0 to 1)."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = {
            "images_per_second": self.steps * self.batch_size / seconds,
            "seconds_per_step": seconds / max(self.steps, 1),
            "data_wait": self.waited / seconds,
        }
        self.restart()
        return rates


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config", "workdir"))
    cli.run_command(values, lambda: run(from_config_dict(values.config), values.workdir))


if __name__ == "__main__":
    main(sys.argv)
