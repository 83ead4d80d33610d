"""All evaluators of an experiment as one function of the variables."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from absl import logging
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, require
from clipjax.data.sources import open_source
from clipjax.eval import EVALUATORS
from clipjax.inference.embed import global_batches, make_embed
from clipjax.models.pixels import image_of


def make_evaluate(config: ExperimentConfig, mesh: Mesh, tokenizer: Any) -> Callable[[Any], dict[str, dict[str, Any]]]:
    """Opens every evaluator's data once; the returned function maps {"params", "batch_stats"} to
    {evaluator: result}.

    All processes must call it together. Raises before anything is compiled when a source or an
    evaluator's name is wrong.
    """
    sources = {}
    for name, evaluator in config.eval.evaluators.items():
        require(
            evaluator.name in EVALUATORS,
            f"config.eval.evaluators.{name}.name='{evaluator.name}' is unknown. Known: {', '.join(EVALUATORS)}.",
        )
        require(
            evaluator.name == "retrieval" or not evaluator.all_captions,
            f"config.eval.evaluators.{name}.all_captions=True is for 'retrieval', not for '{evaluator.name}'.",
        )
        sources[name] = open_source(evaluator.source)
    embed_images, embed_texts = make_embed(config, mesh)

    def evaluate(variables: Any) -> dict[str, dict[str, Any]]:
        results = {}
        for name, evaluator in config.eval.evaluators.items():
            started, source = time.perf_counter(), sources[name]
            # Arguments of one evaluator only, so that others need not know them.
            more = {"captions": lambda i, source=source: source[i]["texts"]} if evaluator.all_captions else {}
            results[name] = EVALUATORS[evaluator.name](
                evaluator,
                batches=lambda source=source: global_batches(config, mesh, tokenizer, source),
                embed_images=lambda batch: embed_images(variables, image_of(batch)),
                embed_texts=lambda tokens: embed_texts(variables, tokens),
                tokenizer=tokenizer,
                class_names=source.class_names,
                mesh=mesh,
                **more,
            )
            logging.info("Evaluated %s in %.1f s", name, time.perf_counter() - started)
        return results

    return evaluate
