"""Runs side by side: what each setting reaches over its seeds, and which differences the seeds do not explain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from clipjax.config import ConfigError, flat, nearest, require
from clipjax.config.metrics import is_share, smaller_is_better
from clipjax.report.compare_groups import changes_of, choose_baseline, group_runs, notes_on_configs
from clipjax.report.statistics import Difference, Spread, difference, holm, spread
from clipjax.runs.best import best_of
from clipjax.runs.record import RunRecord

Counted = list[tuple[RunRecord, int]]  # runs, each with the step whose evaluation counts


@dataclasses.dataclass(frozen=True)
class Reached:
    """How far the runs of a setting trained until an evaluation first reached the target."""

    reached: int  # runs that reached it
    runs: int
    images: Spread  # trained on until then, over the runs that reached it
    seconds: Spread  # of training until then, without start, evaluations and checkpoints


@dataclasses.dataclass(frozen=True)
class Group:
    """One setting: the runs that differ only in their seed."""

    name: str  # "loss=sigmoid, global_batch_size=256", or the run's folder
    settings: dict[str, Any]  # varied field -> value; without fields that the setting's parts do not have
    runs: tuple[RunRecord, ...]  # all, also those that do not count
    values: dict[int, float]  # seed -> the metric, of the runs that count
    spread: Spread
    difference: Difference | None  # from the baseline; None for the baseline itself
    better: bool | None  # whether the difference is an improvement; None where there is none
    seconds: Spread  # see Comparison.wall_time
    images: Spread  # that a run trained on, until the evaluation that counts
    images_per_second: Spread  # while training
    target: Reached | None  # None without a target


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `clipjax compare` shows for one metric."""

    metric: str  # "evaluator/metric"
    smaller_is_better: bool
    share: bool  # the values are shares, which tables show in percent
    fields: tuple[str, ...]  # the varied fields, a column each; () where folders name the runs
    groups: tuple[Group, ...]
    baseline: str  # its group's name
    target: float | None
    step: str  # which evaluation counts: "last", "best" or a number
    wall_time: bool  # Group.seconds is the time of whole processes, as a sweep measured it; False: of training steps
    comparisons: int  # tests, over all metrics, that Holm's correction counts
    notes: tuple[str, ...]  # what a reader must know before believing the table
    changes: dict[str, dict[str, tuple[Any, Any]]]  # group -> field -> (baseline's value, its own), beyond `fields`


def compare(
    records: Sequence[RunRecord],
    *,
    metrics: Sequence[str] = (),
    target: float | None = None,
    baseline: str = "",
    step: str = "last",
    notes: Sequence[str] = (),
) -> list[Comparison]:
    """One Comparison for each metric.

    Args:
      records: runs, see clipjax.runs.record.read_records; those that differ only in their seed, and in what does not
        affect results, are one group.
      metrics: "evaluator/metric"; (): the runs' config.checkpoint.best_metric, or the first accuracy or recall.
      target: a value of the metric.
      baseline: a group's name, one of its fields' values ("loss=softmax" or "softmax"), or a run's folder; "": the
        first group.
      step: "last"; "best" by config.checkpoint.best_metric, among the checkpoints; or the number of a step.
      notes: to be shown with every table.
    Unfinished runs do not count, unless `step` is a number. Raises ConfigError for an unknown metric or baseline, and
    for a step that no run evaluated.
    """
    require(step in ("last", "best") or step.isdecimal(), f"--step={step} is unknown; expected last, best or a step.")
    require(target is None or math.isfinite(target), f"--target={target} must be a finite number.")
    chosen = _choose_metrics(records, metrics)
    fields, grouped = group_runs(records)
    names = list(grouped)
    base = choose_baseline(baseline, grouped, fields)
    told = [*notes, *notes_on_configs(grouped, base, fields)]
    tables = [_values(grouped, metric, step) for metric in chosen]
    pairs = [
        None if name == base else difference(values[name], values[base]) for values, _, _ in tables for name in names
    ]
    corrected = holm(pairs)
    tests = sum(bool(pair and pair.test) for pair in corrected)
    wall_time = all(record.seconds > 0 for record in records)
    changes = {name: changes_of(grouped[base][0], grouped[name][0], fields) for name in names if name != base}
    result = []
    for number, (metric, (values, counted, why)) in enumerate(zip(chosen, tables, strict=True)):
        found = corrected[number * len(names) : (number + 1) * len(names)]
        groups = tuple(
            _group(name, grouped[name], fields, metric, values[name], counted[name], pair, target, wall_time)
            for name, pair in zip(names, found, strict=True)
        )
        numbers = [value for group in groups for value in group.values.values()]
        share = bool(numbers) and all(_is_share(metric, value) for value in numbers)
        require(
            not share or target is None or 0 <= target <= 1,
            f"--target={target}: the values of {metric} are shares from 0 to 1; 0.5 is 50%.",
        )
        notes_of_metric = (*told, *why, *_notes_on_seeds(groups))
        result.append(
            Comparison(
                metric, smaller_is_better(metric), share, fields, groups, base, target, step, wall_time, tests,
                notes_of_metric, {name: change for name, change in changes.items() if change},
            )
        )  # fmt: skip
    return result


def _is_share(metric: str, value: float) -> bool:
    """Whether tables show the value in percent: accuracies and recalls, calibration errors, but no losses."""
    return is_share(metric, value) and (not smaller_is_better(metric) or metric.endswith(("error", "ece")))


def _choose_metrics(records: Sequence[RunRecord], metrics: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(name for r in records for _, values in r.evaluations() for name in values))
    require(bool(known), "None of the runs has been evaluated: config.eval.evaluators is empty, or no run got there.")
    for metric in metrics:
        require(metric in known, f"--metric={metric} is reported by none of the runs.{nearest(metric, known)}")
    if metrics:
        return list(dict.fromkeys(metrics))
    best = {record.config.checkpoint.best_metric for record in records} - {""}
    if len(best) == 1 and best <= set(known):
        return list(best)
    return [next((name for name in known if name.endswith(("/top1", "_r1"))), known[0])]


def _values(
    groups: Mapping[str, list[RunRecord]], metric: str, step: str
) -> tuple[dict[str, dict[int, float]], dict[str, Counted], list[str]]:
    """({group: {seed: the metric}}, {group: the runs that count}, why others do not)."""
    values: dict[str, dict[int, float]] = {}
    counted: dict[str, Counted] = {}
    why = []
    for name, runs in groups.items():
        values[name], counted[name] = {}, []
        for record in runs:
            number, reason = _counted(record, metric, step)
            seed = record.config.seed
            if reason:
                why.append(f"{record.path} {reason} and does not count.")
            elif seed in values[name]:
                why.append(f"{record.path} has the setting and the seed of another run and does not count.")
            else:
                values[name][seed] = dict(record.evaluations())[number][metric]
                counted[name].append((record, number))
    missing = [name for name in groups if not values[name]]
    if missing and not step.isdecimal():
        common = [{s for s, found in r.evaluations() if metric in found} for runs in groups.values() for r in runs]
        shared = max(set.intersection(*common), default=0) if common else 0
        if shared:
            why.append(f"--step={shared} compares all runs at the last step that all have evaluated.")
    if len(missing) == len(groups):
        raise ConfigError(f"There is nothing to compare by {metric}:\n" + "\n".join(f"  {line}" for line in why))
    return values, counted, why


def _counted(record: RunRecord, metric: str, step: str) -> tuple[int, str]:
    """(the step whose evaluation counts, why the run does not count or "")."""
    found = {number: values[metric] for number, values in record.evaluations() if metric in values}
    if not step.isdecimal() and not record.finished:
        return 0, f"is unfinished (step {record.step} of {record.config.total_steps})"
    if not found:
        return 0, f"does not report {metric}"
    if step == "last":
        number = max(found)
    elif step == "best":
        best = record.config.checkpoint.best_metric
        require(bool(best), f"--step=best: {record.path} has no config.checkpoint.best_metric; use --step=last.")
        number = _best_step(record, best, found)
        if number is None:
            return 0, f"has no evaluation after step 0 with {metric} and a number for {best}"
    else:
        number = int(step)
        if number not in found:
            return 0, f"has no evaluation at step {step}"
    return number, f"has {metric} that is not a number at step {number}" if math.isnan(found[number]) else ""


def _best_step(record: RunRecord, best: str, steps: Collection[int]) -> int | None:
    """The one of `steps` that clipjax eval --step=best would take: a checkpoint's, the earliest of equals.

    Where the run's checkpoints are gone, or none of them was evaluated, all evaluations of trained weights compete.
    """
    scores = {
        step: values[best]
        for step, values in record.evaluations()
        if step > 0 and step in steps and best in values and not math.isnan(values[best])
    }
    saved = {step: score for step, score in scores.items() if step in record.saved}
    return best_of(saved or scores, best)


def _group(
    name: str,
    runs: Sequence[RunRecord],
    fields: Sequence[str],
    metric: str,
    values: dict[int, float],
    counted: Counted,
    pair: Difference | None,
    target: float | None,
    wall_time: bool,
) -> Group:
    settings = {field: value for field, value in flat(runs[0].config).items() if field in fields}
    trained = [(record, record.training_seconds(record.step)) for record, _ in counted]
    rates = [record.images(record.step) / seconds for record, seconds in trained if seconds > 0]
    seconds = [record.seconds if wall_time else took for record, took in trained]
    reached = None
    if target is not None:
        steps = [(record, _first_step(record, metric, target)) for record, _ in counted]
        steps = [(record, number) for record, number in steps if number is not None]
        took = [record.training_seconds(number) for record, number in steps]
        reached = Reached(len(steps), len(counted), spread([r.images(n) for r, n in steps]), _known(took))
    better = None
    if pair is not None and pair.mean and not math.isnan(pair.mean):
        better = (pair.mean < 0) == smaller_is_better(metric)
    return Group(
        name, {field: settings[field] for field in fields if field in settings}, tuple(runs), values,
        spread(list(values.values())), pair, better, _known(seconds), spread([r.images(n) for r, n in counted]),
        spread(rates), reached,
    )  # fmt: skip


def _first_step(record: RunRecord, metric: str, target: float) -> int | None:
    """The first step at which an evaluation reached the target; evaluations in between are not interpolated."""
    reaches: Callable[[float], bool] = (
        (lambda value: value <= target) if smaller_is_better(metric) else (lambda value: value >= target)
    )
    return next((step for step, values in record.evaluations() if metric in values and reaches(values[metric])), None)


def _known(values: Sequence[float]) -> Spread:
    return spread([value for value in values if not math.isnan(value)])


def _notes_on_seeds(groups: Sequence[Group]) -> list[str]:
    seeds = {group.name: sorted(group.values) for group in groups if group.values}
    notes = []
    if len({tuple(numbers) for numbers in seeds.values()}) > 1:
        listed = "; ".join(f"{name}: {', '.join(map(str, numbers))}" for name, numbers in seeds.items())
        notes.append(f"The settings have different seeds ({listed}): paired tests use the shared ones.")
    return notes
