"""The training loop: step, log, evaluate, save, until the last step or a preemption."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import logging

from clipjax.config import ExperimentConfig
from clipjax.config.metrics import is_share
from clipjax.processes import announce
from clipjax.training.preemption import Preemption
from clipjax.training.profile import Profiler
from clipjax.training.progress import Window, progress_line
from clipjax.training.state import TrainState, reported_variables

# How many steps the host may run ahead of the devices: enough to hide dispatch, few enough to notice a non-finite
# loss soon.
MAX_STEPS_IN_FLIGHT = 2


class TrainingError(RuntimeError):
    """The run stopped itself; the message says why, and that the last checkpoint is intact."""


class Finished(NamedTuple):
    state: TrainState
    results: dict[str, float]  # of the last evaluation
    data_state: dict[str, Any] | None  # the data iterator's after the last step; None when no step was left to do


def loop(
    config: ExperimentConfig,
    state: TrainState,
    step_fn: Callable,
    stream: Iterator[tuple[Any, dict[str, Any], float]],
    *,
    evaluate: Callable[[TrainState], dict[str, float]],
    evaluated: Callable[[Any, int], None] = lambda variables, step: None,
    save: Callable[..., None],
    log: Callable[[int, dict[str, float]], None],
    step_done: Callable[[int], None],
    profiler: Profiler,
    data_metrics: Callable[[int, dict[str, Any]], dict[str, float]],
    compile_seconds: Callable[[], float] = lambda: 0.0,
    flops: Callable[[Any], float] = lambda batch: 0.0,
    peak: float | None = None,
) -> Finished:
    """Steps from state.step to config.total_steps, or to a preemption. All processes call it together.

    Args:
      step_fn: (state, batch) -> (state, metrics), see training/step.py.
      stream: (batch on the mesh, data state after it, seconds waited for it).
      evaluate: state -> {"evaluator/metric": value}.
      evaluated: (variables, step), after each evaluation.
      save: called as save(state, data_state=..., metrics=results of this step's evaluation, or None).
      log: (step, values), for every line of metrics.jsonl.
      step_done: (step), after each step.
      profiler: traces the steps of config.log.profile.
      data_metrics: (step, data state) -> what to log about the data.
      compile_seconds: how long step_fn has compiled so far; a step that compiles is not mistaken for a slow one.
      flops: batch -> model FLOPs of the step on it; 0: not counted.
      peak: FLOP/s that all devices could make together; None: not known, and no mfu is logged.
    Raises TrainingError after config.optimizer.max_nonfinite_steps skipped steps in a row.
    """
    total, every = config.total_steps, config.eval.every_steps
    started_at = int(state.step)
    window = Window(config.global_batch_size, peak)
    in_flight: collections.deque = collections.deque()
    results: dict[str, float] = {}
    if started_at >= total:
        results = evaluate(state)
        evaluated(reported_variables(state, config.eval.weights), started_at)
    data_state = None
    with Preemption() as preemption, profiler:
        for step in range(started_at + 1, total + 1):
            compiled, paused = compile_seconds(), profiler.before(step, state)
            with profiler.step(step):
                batch, data_state, data_wait = next(stream)
                state, metrics = step_fn(state, batch)
            in_flight.append(metrics)
            while len(in_flight) > (MAX_STEPS_IN_FLIGHT if step < total else 0):
                stop_if_not_finite(in_flight.popleft(), config)
            window.add(data_wait, paused + compile_seconds() - compiled, flops(batch))
            step_done(step)
            if step == total or step % config.log.every_steps == 0:
                values = {name: float(value) for name, value in metrics.items()} | window.rates()
                log(step, values | data_metrics(step, data_state))
                announce(progress_line(step, total, values))

            preempted = preemption.reached(step)
            traced = profiler.after(step, state, ends=preempted)
            evaluates = step == total or (every > 0 and step % every == 0)
            saves = step == total or preempted or step % config.checkpoint.every_steps == 0
            if evaluates:
                results = evaluate(state)
                log(step, results)
                evaluated(reported_variables(state, config.eval.weights), step)
                if results:  # empty without evaluators
                    announce(f"evaluated step {step}: {headline(results)}")
            if preemption.alone and preemption.signalled:  # during the evaluation
                preempted = saves = True
            if saves:
                save(state, data_state=data_state, metrics=results if evaluates else None)
            if evaluates or saves or traced:
                window.restart()
            if preempted:
                break
    return Finished(state, results, data_state)


def stop_if_not_finite(metrics: dict[str, Any], config: ExperimentConfig) -> None:
    """Warns about a skipped step. Raises TrainingError when too many have been skipped in a row."""
    in_a_row = int(metrics["skipped_in_a_row"])
    if in_a_row:
        logging.warning("Loss or gradient not finite: step skipped, %d in a row", in_a_row)
    if in_a_row >= config.optimizer.max_nonfinite_steps:
        raise TrainingError(
            f"The loss or its gradient was not finite for {in_a_row} steps in a row; these steps changed no parameter, "
            "and the last checkpoint is intact. Lower config.optimizer.learning_rate, raise "
            "schedule.warmup_steps, or set config.optimizer.grad_clip_norm=1.0, and run the command again."
        )


def headline(results: dict[str, float]) -> str:
    """Each evaluator's accuracies and recalls at 1 and 5, or its first number where it has none of them.

    metrics.jsonl has all numbers.
    """
    shown: dict[str, float] = {}
    for evaluator in dict.fromkeys(name.partition("/")[0] for name in results):
        own = {name: value for name, value in results.items() if name.partition("/")[0] == evaluator}
        first = {name: value for name, value in own.items() if name.endswith(("top1", "top5", "_r1", "_r5"))}
        shown |= first or dict(itertools.islice(own.items(), 1))
    texts = {name: f"{value:.1%}" if is_share(name, value) else f"{value:.4g}" for name, value in shown.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())
