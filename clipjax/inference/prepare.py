"""What an evaluation of an open run needs before it begins: the configuration, the mesh, the tokenizer, the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.config import EvaluationConfig, ExperimentConfig, ModelConfig, TokenizerConfig, evaluated, require
from clipjax.config.fields import LAYOUT, declarations
from clipjax.data.sources import Source
from clipjax.data.tokenizers import make_tokenizer
from clipjax.eval import EVALUATORS
from clipjax.inference.evaluate import check_evaluators, open_evaluators
from clipjax.mesh import make_mesh
from clipjax.models.towers import towers_of
from clipjax.models.towers.absent import a_tower
from clipjax.processes import announce
from clipjax.runs import Run
from clipjax.runs.fingerprint import check_fingerprint, fingerprint
from clipjax.training.check import check_evaluation, check_tokenizer


def prepare_evaluation(
    run: Run, config: ExperimentConfig | EvaluationConfig | None = None
) -> tuple[ExperimentConfig, Mesh, Any, dict[str, Source]]:
    """(config to evaluate with, mesh, tokenizer, opened sources) for an open run; see evaluate_run."""
    config, mesh, tokenizer = prepare_model(run, config)
    return config, mesh, tokenizer, open_evaluators(config)


def prepare_model(
    run: Run, config: ExperimentConfig | EvaluationConfig | None = None
) -> tuple[ExperimentConfig, Mesh, Any]:
    """(config to evaluate with, mesh, tokenizer) for an open run; opens no data. See evaluate_run."""
    trained = run.config
    config = evaluated(trained, config, jax.device_count())
    require(
        config.eval.evaluators,
        f"config.eval.evaluators is empty, and {run.directory} has none of its own: there is nothing to evaluate. Name "
        "an evaluation with --config, such as --config=experiments/eval/clip_benchmark.py:FOLDER.",
    )
    own = trained.tokenizer
    if config.tokenizer.name == own.name and not Path(config.tokenizer.path).exists():  # an experiment from elsewhere
        config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=own.path))
    check_evaluators(config)
    check_embeds(run, config)
    texts = "text" in towers_of(trained.model)
    require(
        bool(config.tokenizer.path) or not texts,
        f"{run.directory} has no tokenizer, without which no text can be embedded: import the weights again with one.",
    )
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length) if texts else NoTokenizer()
    check_tokenizer(config, tokenizer)
    where = f"{run.directory} step {run.step}"
    check_fingerprint(run.fingerprint, fingerprint(config, tokenizer), where=where)
    check_evaluation(config, num_devices=jax.device_count(), process_count=jax.process_count())
    if config.model.dtype != trained.model.dtype:
        announce(
            f"Evaluating in {trained.model.dtype}, as {run.directory} was trained: config.model.dtype="
            f"{config.model.dtype} is not used."
        )
    # The layout of the weights (scanned or not, averaged or not) is the run's, not this evaluation's.
    model = with_runtime_options(trained.model, config.model)
    return dataclasses.replace(config, model=model, optimizer=trained.optimizer), make_mesh(config.mesh), tokenizer


def check_embeds(run: Run, config: ExperimentConfig) -> None:
    """Refuses evaluators that need a tower that the run does not have. Raises ConfigError."""
    has = towers_of(run.config.model)
    for name, evaluator in config.eval.evaluators.items():
        missing = [side for side in evaluator.embeds if side not in has]
        fitting = [other for other, row in EVALUATORS.items() if set(row.config().embeds) <= set(has)]
        require(
            not missing,
            f"config.eval.evaluators.{name} ('{evaluator.name}') embeds {' and '.join(f'{s}s' for s in missing)}, and "
            f"{run.directory} has only {a_tower(has[0])}. Evaluators that fit it: {', '.join(fitting) or 'none'}.",
        )


class NoTokenizer:
    """Stands for the tokenizer of a model without a text tower: every text is one token that nothing reads."""

    config = TokenizerConfig()
    sha256, vocab_size, pad_id, eos_id = "", 0, 0, -1

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.zeros((len(texts), 1), np.int32)


def with_runtime_options(trained: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """`trained`, with the options of `wanted` that any weights may be used with (max_patches, attention, ...).

    Those are the ones that do not decide what the weights mean, nor how their tree is laid out.
    """

    def tower(side: str) -> Any:
        free = {
            name: value
            for name, value, declared in declarations(getattr(wanted, side))
            if declared.role in ("runtime", "experiment") and declared.fixed != LAYOUT
        }
        return dataclasses.replace(getattr(trained, side), **free)

    return dataclasses.replace(trained, image=tower("image"), text=tower("text"))
