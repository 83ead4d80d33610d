"""A checkpoint on any mesh -> zero-shot accuracy, retrieval, ... -> results.json and report.html.

clipjax eval --checkpoint=runs/quickstart
clipjax eval --checkpoint=runs/quickstart --step=best --config=experiments/other_eval.py --out=results/
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from clipjax import checkpoint as checkpoints
from clipjax import cli
from clipjax.atomic import write_text
from clipjax.check import check
from clipjax.config import ExperimentConfig, from_config_dict, require, to_json_dict
from clipjax.data.naflex import budget_of
from clipjax.data.pipeline import eval_batches
from clipjax.data.prefetch import prefetch_to_mesh
from clipjax.data.sources import open_source
from clipjax.data.text import make_tokenizer
from clipjax.eval import EVALUATORS
from clipjax.fingerprint import check_fingerprint, fingerprint
from clipjax.mesh import batch_sharding, make_mesh, param_shardings, replicated, to_host
from clipjax.models import DualEncoder
from clipjax.models.pixels import image_of, normalize_pixels
from clipjax.report.html import write_html
from clipjax.report.table import format_table
from clipjax.train_step import abstract_state, eval_variables


def run(
    checkpoint: str | Path,
    *,
    config: ExperimentConfig | None = None,
    step: str = "latest",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluates one checkpoint of a training run and writes `out`/results.json and report.html.

    Args:
      checkpoint: the workdir of a training run, on whatever mesh it was trained.
      config: whose mesh, eval and data sections to use; its model and tokenizer must be the checkpoint's
        (FingerprintError lists what differs). None: the checkpoint's own.
      step: "latest", "best" or a step number.
      out: folder; None: checkpoint/eval/<step>.
    Returns: what results.json holds.
    """
    manager, number = checkpoints.open_run(checkpoint, step)
    trained, trained_fingerprint = checkpoints.read_meta(manager, number)
    config = config or dataclasses.replace(trained, mesh=dataclasses.replace(trained.mesh, data=-1))
    require(config.eval.evaluators, "config.eval.evaluators is empty: there is nothing to evaluate.")
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
    check_fingerprint(trained_fingerprint, fingerprint(config, tokenizer), where=f"{checkpoint} step {number}")
    check(config, num_devices=jax.device_count(), process_count=jax.process_count())
    mesh = make_mesh(config.mesh)
    # How the tree is laid out (scanned or not, EMA or not) is the checkpoint's, not this evaluation's.
    # The budget of patches is no part of the weights: a naflex model may be evaluated at another.
    image = dataclasses.replace(trained.model.image, max_patches=config.model.image.max_patches)
    model = dataclasses.replace(trained.model, image=image)
    config = dataclasses.replace(config, model=model, optimizer=trained.optimizer)
    variables = checkpoints.restore_variables(manager, number, config, mesh)
    bad = checkpoints.read_bad_causes(manager, number)
    manager.close()

    started = time.perf_counter()
    results = make_evaluate(config, mesh, tokenizer)(variables)
    document = {
        "checkpoint": str(checkpoint),
        "step": number,
        "results": results,
        "fingerprint": trained_fingerprint,
        "eval": to_json_dict(config)["eval"],
        "mesh": dict(mesh.shape),
        **({"max_patches": image.max_patches} if image.name == "naflex" else {}),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if jax.process_index() == 0:
        out = Path(out) if out else Path(checkpoint) / "eval" / str(number)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "results.json", json.dumps(document, indent=2, sort_keys=True))
        write_html(
            out / "report.html",
            title=f"{checkpoint}, step {number}",
            results=results,
            config=to_json_dict(config),
            notes={
                "fingerprint": trained_fingerprint,
                "mesh": dict(mesh.shape),
                "bad records replaced in training": bad or "none",
            },
        )
        print(format_table(results))
        print(f"Wrote {out / 'results.json'} and {out / 'report.html'}")
    return document


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


def global_batches(
    config: ExperimentConfig, mesh: Mesh, tokenizer: Any, source: Any, *, shares: Sequence[range] | None = None
) -> Iterator[dict[str, jax.Array]]:
    """The records of `source` once, in order, as global arrays over (data, fsdp); see data.pipeline.eval_batches."""
    local = eval_batches(
        source,
        tokenizer=tokenizer,
        pixels=config.data.pixels,
        image_size=config.model.image.image_size,
        budget=budget_of(config.model.image),
        batch_size=config.eval.batch_size,
        num_threads=config.data.num_threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        shares=shares,
    )
    pairs = ((batch, None) for batch in local)
    with contextlib.closing(prefetch_to_mesh(pairs, batch_sharding(mesh), config.data.prefetch)) as stream:
        for batch, _, _ in stream:
            yield batch


def make_embed(config: ExperimentConfig, mesh: Mesh) -> tuple[Callable, Callable]:
    """(embed_images, embed_texts) for this model on this mesh, jitted.

    variables: {"params", "batch_stats"}, see train_step.eval_variables.
    embed_images(variables, pixels.image_of(a batch of global arrays)) -> [B, embed_dim] float32, sharded as the batch.
    embed_texts(variables, tokens [N, L] int32, the same on every process) -> [N, embed_dim] float32 NumPy.
    """
    model = DualEncoder(config.model, batch_sharding(mesh))
    pixels, batch_size = config.data.pixels, config.eval.batch_size
    shardings = param_shardings(eval_variables(abstract_state(config, mesh)), mesh)
    sharding = batch_sharding(mesh)

    def image_embedding(variables: Any, image: jax.Array) -> jax.Array:
        image = normalize_pixels(image, pixels.mean, pixels.std, jnp.dtype(config.model.dtype))
        return model.apply(variables, image=image, text=None).image_embedding

    def text_embedding(variables: Any, text: jax.Array) -> jax.Array:
        return model.apply(variables, image=None, text=text).text_embedding

    embed_images = jax.jit(image_embedding, in_shardings=(shardings, sharding), out_shardings=sharding)
    embed_block = jax.jit(text_embedding, in_shardings=(shardings, sharding), out_shardings=replicated(mesh))

    def embed_texts(variables: Any, tokens: np.ndarray) -> np.ndarray:
        blocks = []
        for start in range(0, len(tokens), batch_size):
            block = tokens[start : start + batch_size]
            padded = np.zeros((batch_size, tokens.shape[1]), np.int32)
            padded[: len(block)] = block
            array = jax.make_array_from_callback(padded.shape, sharding, lambda index, x=padded: x[index])
            blocks.append(to_host(embed_block(variables, array))[: len(block)])
        return np.concatenate(blocks) if blocks else np.zeros((0, config.model.embed_dim), np.float32)

    return embed_images, embed_texts


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


if __name__ == "__main__":
    main(sys.argv)
