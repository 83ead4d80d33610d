"""An experiment's evaluators as functions of the variables; session.py evaluates checkpoints with them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clipjax.config import (
    ConfigError,
    EvaluatorConfig,
    ExperimentConfig,
    SourceConfig,
    nearest,
    require,
)
from clipjax.data.probe import Labels, read_labels
from clipjax.data.records import ManifestError
from clipjax.data.sources import Source, open_source
from clipjax.eval import EVALUATORS
from clipjax.eval.split import Split
from clipjax.inference.embed import global_batches, make_embed, make_image_features
from clipjax.mesh import to_host
from clipjax.models.pixels import image_of
from clipjax.storage.data_cache import use_cache
from clipjax.training.state import RAW, TrainState, variables_to_evaluate

Results = dict[str, dict[str, Any]]  # evaluator -> metric -> value


def check_evaluators(config: ExperimentConfig) -> None:
    """Refuses evaluators that are unknown or whose options are wrong; opens no data. Raises ConfigError."""
    for name, evaluator in config.eval.evaluators.items():
        where = f"config.eval.evaluators.{name}"
        require(
            evaluator.name in EVALUATORS,
            f"{where}.name='{evaluator.name}' is unknown.{nearest(evaluator.name, EVALUATORS)}",
        )
        row = EVALUATORS[evaluator.name]
        require(
            isinstance(evaluator, row.config),
            f"{where} is a {type(evaluator).__name__}; '{evaluator.name}' takes a {row.config.__name__}.",
        )
        require(
            config.eval.weights != "both" or f"{name}{RAW}" not in config.eval.evaluators,
            f"{where}{RAW} has the name that config.eval.weights='both' gives to results of {where}; use another name.",
        )
        if row.check:
            with errors_of(name):
                row.check(evaluator)
    best = config.checkpoint.best_metric
    if best.split("/")[0] in config.eval.evaluators and config.eval.evaluators[best.split("/")[0]].metrics:
        check_best_metric(config, [f"{n}/{m}" for n, e in config.eval.evaluators.items() for m in e.metrics])


def open_evaluators(config: ExperimentConfig) -> dict[str, Source]:
    """{evaluator: its source, "evaluator.field": another of its sources}; equal sources are opened once.

    Raises ConfigError for an evaluator that cannot use its data, such as labels beyond the class names, as far as
    PROBED of the records show it; and as open_source does.
    """
    check_evaluators(config)
    use_cache(config.data.cache_dir, config.data.cache_gib)
    opened: dict[SourceConfig, Source] = {}
    sources = {}
    for name, evaluator in config.eval.evaluators.items():
        sources |= open_evaluator(name, evaluator, opened)
    return sources


def open_evaluator(name: str, evaluator: EvaluatorConfig, opened: dict[SourceConfig, Source]) -> dict[str, Source]:
    """The sources of one evaluator, as open_evaluators returns those of all; opened: those that are open, and grows."""
    sources = {}
    for field, source in evaluator.sources.items():
        with errors_of(key := _key(name, field)):
            if source not in opened:
                opened[source] = open_source(source)
            sources[key] = opened[source]
    others = {field: sources[_key(name, field)] for field in evaluator.sources if field != "source"}
    with errors_of(name):
        check_with_data(evaluator, sources[name], others=others)
    return sources


def _key(evaluator: str, field: str) -> str:
    return evaluator if field == "source" else f"{evaluator}.{field}"


def check_with_data(
    evaluator: EvaluatorConfig,
    source: Source,
    labels: Callable[[], Labels] | None = None,
    others: Mapping[str, Source] | None = None,
) -> None:
    """Calls the check of the evaluator's row, with what it takes of `class_names`, `labels`, `captions` and `others`.

    labels: reads the source's labels; None: some of them, see clipjax.data.probe. others: the evaluator's other
    sources by field, of which the check gets (class names, a function that reads labels).
    """
    require(
        not (getattr(source, "has_false_captions", False) and getattr(evaluator, "all_captions", False)),
        f"{evaluator.source.path} is a set of true and false captions; all_captions=True would count the false ones as "
        "right. Use the evaluator 'compositional'.",
    )
    check_row = EVALUATORS[evaluator.name].check
    offered = {
        "class_names": source.class_names,
        "labels": labels or functools.partial(read_labels, source),
        "templates": getattr(source, "templates", ()),
        "captions": captions_of(source),
    }
    if others is not None:
        offered["others"] = {
            field: (other.class_names, functools.partial(read_labels, other)) for field, other in others.items()
        }
    wanted = inspect.signature(check_row).parameters if check_row else {}
    if taken := {name: value for name, value in offered.items() if name in wanted}:
        check_row(evaluator, **taken)


def captions_of(source: Source) -> Callable[[int], Sequence[str]]:
    """(index of a record) -> all its texts, without reading the image from sources that can."""
    return getattr(source, "captions", None) or (lambda index: source[index]["texts"])


@contextlib.contextmanager
def errors_of(evaluator: str) -> Iterator[None]:
    """Begins the message of an error about an evaluator or its data with the evaluator's field."""
    try:
        yield
    except (ConfigError, ManifestError) as error:
        where = f"config.eval.evaluators.{evaluator}"
        raise type(error)(str(error) if where in str(error) else f"{where}: {error}") from error


def make_evaluate(
    config: ExperimentConfig,
    mesh: Mesh,
    tokenizer: Any,
    sources: dict[str, Source] | None = None,
    embed: tuple[Callable, Callable] | None = None,
) -> Callable[[Any], Results]:
    """A function from {"params", "batch_stats"} to {evaluator: result}. All processes call it together.

    sources: what open_evaluators returned; None: it is called here, and raises ConfigError before anything is compiled.
    embed: what make_embed returned, to share its compiled functions; None: it is called here.
    """
    sources = open_evaluators(config) if sources is None else sources
    evaluate_one = make_evaluate_one(config, mesh, tokenizer, embed)

    def evaluate(variables: Any) -> Results:
        results = {}
        for name in config.eval.evaluators:
            started = time.perf_counter()
            results[name] = evaluate_one(name, sources, variables)
            logging.info("Evaluated %s in %.1f s", name, time.perf_counter() - started)
        return results

    return evaluate


def make_evaluate_one(
    config: ExperimentConfig, mesh: Mesh, tokenizer: Any, embed: tuple[Callable, Callable] | None = None
) -> Callable[[str, dict[str, Source], Any], dict[str, Any]]:
    """The function (evaluator's name, open sources, variables) -> its result; see make_evaluate."""
    embed_images, embed_texts = embed or make_embed(config, mesh)
    image_features = _image_features(config, mesh)

    def split_of(source: Source) -> Split:
        batches = functools.partial(global_batches, config, mesh, tokenizer, source)
        return Split(len(source), batches, source.__getitem__, source.class_names, source.where)

    def evaluate_one(name: str, sources: dict[str, Source], variables: Any) -> dict[str, Any]:
        evaluator, source = config.eval.evaluators[name], sources[name]
        others = {field: split_of(sources[_key(name, field)]) for field in evaluator.sources if field != "source"}
        return EVALUATORS[evaluator.name](
            evaluator,
            batches=lambda: global_batches(config, mesh, tokenizer, source),
            embed_images=lambda batch: embed_images(variables, image_of(batch)),
            embed_texts=lambda tokens: embed_texts(variables, tokens),
            image_features=image_features and (lambda batch: image_features(variables, image_of(batch))),
            tokenizer=tokenizer,
            class_names=source.class_names,
            where=source.where,
            captions=captions_of(source),
            record=source.__getitem__,
            templates=getattr(source, "templates", ()),
            logit_scale=_logit_scale(variables),
            mesh=mesh,
            **others,
        )

    return evaluate_one


def _logit_scale(variables: Any) -> float | None:
    """The scale of the cosines in the model's loss; None where the weights have none."""
    log_scale = variables.get("params", {}).get("logit_scale")
    return None if log_scale is None else float(np.exp(to_host(log_scale)))


def _image_features(config: ExperimentConfig, mesh: Mesh) -> Callable[[Any, Any], jax.Array] | None:
    """What enters the image tower's projection, if an evaluator needs it. Raises ConfigError where there is none."""
    need = [name for name, evaluator in config.eval.evaluators.items() if evaluator.needs_features]
    features = make_image_features(config, mesh) if need else None
    require(
        not need or features is not None,
        f"config.eval.evaluators.{(need or [''])[0]} needs what enters the image tower's projection, which image tower "
        f"'{config.model.image.name}' does not give; use features='image_embedding'.",
    )
    return features


def numbers_of_state(
    config: ExperimentConfig, evaluate: Callable[[Any], Results], state: TrainState
) -> dict[str, float]:
    """The numbers of a training state, of the weights that config.eval.weights names; evaluate: of make_evaluate."""
    numbers = {}
    for suffix, variables in variables_to_evaluate(state, config.eval.weights).items():
        numbers |= numbers_of(evaluate(variables), suffix)
    return numbers


def numbers_of(results: Results, suffix: str = "") -> dict[str, float]:
    """{"retrieval": {"r1": 0.5}} -> {"retrieval/r1": 0.5}, numbers only; suffix: of the evaluators' names."""
    return {
        f"{name}{suffix}/{metric}": float(value)
        for name, result in results.items()
        for metric, value in result.items()
        if isinstance(value, int | float)
    }


def check_best_metric(config: ExperimentConfig, numbers: Collection[str]) -> None:
    """Refuses a checkpoint.best_metric that is not among what the evaluators report. Raises ConfigError."""
    best = config.checkpoint.best_metric
    require(
        not best or best in numbers, f"config.checkpoint.best_metric='{best}' is not reported.{nearest(best, numbers)}"
    )
