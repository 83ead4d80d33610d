"""TrainState: what survives a step, how it starts, and where each of its arrays lies on the mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.mesh import param_shardings, replicated, state_shardings
from clipjax.models import DualEncoder, image_tower
from clipjax.models.pixels import image_of, normalize_pixels
from clipjax.training.ema import first_averages
from clipjax.training.lora import merged, with_adapters
from clipjax.training.trainable import make_tx, trained


@flax.struct.dataclass
class TrainState:
    """Everything that survives a step, and the only thing that does."""

    step: jax.Array  # int32, batches consumed
    params: Any  # float32: the towers, logit_scale, logit_bias; and "lora" (training/lora.py) in runs with adapters
    opt_state: Any
    ema_params: Any  # float32 tree like params, or None
    rng: jax.Array  # PRNG key data, never advanced: step keys are fold_in(rng, step)
    skipped: jax.Array  # int32, steps skipped so far because loss or gradient was not finite
    skipped_in_a_row: jax.Array  # int32, consecutive skipped steps so far
    batch_stats: Any = flax.struct.field(default_factory=dict)  # BatchNorm's running statistics; {} for other towers
    ema_batch_stats: Any = None  # averages of batch_stats, kept where ema_params are


class Weights(Protocol):
    """Opened weights: a run (clipjax.runs.open_run) or a published model (clipjax.interop.foreign.open_foreign)."""

    config: ExperimentConfig

    def variables(self, mesh: Mesh) -> dict[str, Any]:
        """{"params", "batch_stats"} on the mesh."""


class TrainedWeights(Weights, Protocol):
    """Weights with the settings that decide what they mean: an opened run."""

    fingerprint: dict[str, Any]  # see clipjax/runs/fingerprint.py


def create_state(config: ExperimentConfig, mesh: Mesh) -> TrainState:
    """A fresh TrainState. Every array is created where it lives on the mesh, with the same numbers on any mesh."""
    init = initializer(config)
    shardings = train_state_shardings(jax.eval_shape(init), mesh)
    return jax.jit(init, out_shardings=shardings)()


def abstract_state(config: ExperimentConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of create_state's result, without computing it."""
    shapes = jax.eval_shape(initializer(config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        train_state_shardings(shapes, mesh),
    )


def initializer(config: ExperimentConfig) -> Callable[[], TrainState]:
    """The function () -> TrainState that starts from config.seed; traceable."""

    def init() -> TrainState:
        params_key, step_key = jax.random.split(jax.random.key(config.seed))
        image = config.model.image
        columns = {n: jnp.ones(shape, dtype) for n, (shape, dtype) in image_tower(image).columns(image, 1).items()}
        pixels = config.data.pixels
        variables = DualEncoder(config.model).init(
            params_key,
            image=normalize_pixels(image_of(columns), pixels.mean, pixels.std),
            text=jnp.zeros((1, config.model.text.context_length), jnp.int32),
        )
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        params = with_adapters(config, params, jax.random.fold_in(params_key, 1))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=params,
            opt_state=make_tx(config, params).init(trained(config, params)),
            rng=jax.random.key_data(step_key),
            skipped=zero,
            skipped_in_a_row=zero,
            batch_stats=batch_stats,
            **first_averages(config.optimizer, params, batch_stats),
        )

    return init


def eval_variables(state: TrainState) -> dict[str, Any]:
    """{"params", "batch_stats"} to evaluate with: the averages if the run keeps them; adapters are merged."""
    if state.ema_params is None:
        return raw_variables(state)
    return {"params": merged(state.ema_params), "batch_stats": state.ema_batch_stats}


def raw_variables(state: TrainState) -> dict[str, Any]:
    """{"params", "batch_stats"} of the step itself, as the model takes them; adapters are merged."""
    return {"params": merged(state.params), "batch_stats": state.batch_stats}


RAW = "_raw"  # follows the evaluators' names in results of the parameters, where the averages are evaluated too


def result_names(evaluators: Iterable[str]) -> set[str]:
    """The names that these evaluators' results may have in metrics.jsonl."""
    return {f"{name}{suffix}" for name in evaluators for suffix in ("", RAW)}


def variables_to_evaluate(state: TrainState, weights: str) -> dict[str, dict[str, Any]]:
    """{suffix of the evaluators' names: variables} by config.eval.weights; one entry for a run without averages."""
    return {
        suffix: eval_variables(state) if average else raw_variables(state)
        for suffix, average in weights_to_evaluate(state.ema_params is not None, weights).items()
    }


def reported_variables(state: TrainState, weights: str) -> dict[str, Any]:
    """The first of variables_to_evaluate: those whose results have the evaluators' own names."""
    return next(iter(variables_to_evaluate(state, weights).values()))


def weights_to_evaluate(averaged: bool, weights: str) -> dict[str, bool]:
    """{suffix of the evaluators' names: whether it is the averages} by config.eval.weights.

    averaged: whether the run keeps averages; without them there is one set of weights to evaluate.
    """
    if not averaged or weights == "raw":
        return {"": False}
    return {"": True, RAW: False} if weights == "both" else {"": True}


def train_state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """NamedSharding for every leaf of a TrainState (shapes are enough)."""
    every = replicated(mesh)
    return TrainState(
        step=every,
        params=param_shardings(state.params, mesh),
        opt_state=state_shardings(state.opt_state, state.params, mesh),
        ema_params=None if state.ema_params is None else param_shardings(state.ema_params, mesh),
        rng=every,
        skipped=every,
        skipped_in_a_row=every,
        batch_stats=param_shardings(state.batch_stats, mesh),
        ema_batch_stats=None if state.ema_batch_stats is None else param_shardings(state.ema_batch_stats, mesh),
    )
