"""One step of training as a pure function: (TrainState, batch) -> (TrainState, metrics)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.losses import chosen_comm
from clipjax.mesh import batch_sharding, param_shardings, replicated
from clipjax.models import image_tower, text_tower
from clipjax.optim import make_schedule
from clipjax.processes import announce
from clipjax.training.ema import updated_averages
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.state import TrainState, abstract_state, train_state_shardings
from clipjax.training.teacher import EmbeddedTeacher, Teacher
from clipjax.training.temperature import clip_logit_scale
from clipjax.training.trainable import joined, make_tx, trained

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    config: ExperimentConfig, mesh: Mesh, state: TrainState, teacher: Teacher | EmbeddedTeacher | None = None
) -> Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]:
    """The jitted step for this experiment on this mesh. It donates the state that it is given.

    Args:
      state: shapes are enough (abstract_state).
      teacher: for a loss that learns from one; the step then takes its variables as a third argument.
    Batch: the columns of batch_shapes, global arrays over (data, fsdp): {"image": [B, H, W, 3] uint8 (or patches: see
      data/images/naflex.py), "text": [B, L] int32 ([B, K, L] for config.data.captions_per_image K > 1), and "pair_id":
      [B] int32 where config.loss.repeats asks for it}.
    Metrics: float32 scalars, replicated: loss, grad_norm, update_norm, logit_scale, logit_bias,
      learning_rate, skipped, skipped_in_a_row, and what the loss adds.

    A step whose loss or gradient is not finite changes nothing except the counters, and its update_norm is 0. The
    learning rate of an update is the one that is logged, and follows state.step: skipped steps pass in the schedule, so
    that it ends where it should. The optimizer's own counts (Adam's bias correction) are of the updates that were kept.
    Parameters that do not train (training/trainable.py) are returned as they came, and grad_norm and update_norm are
    those of the others.
    """
    tx = make_tx(config, state.params)
    schedule = make_schedule(config.optimizer, config.total_steps)
    loss_and_gradients = make_loss_and_gradients(config, mesh, teacher)

    def part(params: Any) -> Any:
        return None if params is None else trained(config, params)

    def whole(params: Any, part: Any) -> Any:
        return None if params is None else joined(params, part)

    def train_step(state: TrainState, batch: Batch, teacher_variables: Any = None) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        loss, metrics, grads, batch_stats = loss_and_gradients(
            state.params, state.batch_stats, batch, key, teacher_variables
        )
        with jax.named_scope("optimizer"):
            grad_norm = optax.tree.norm(grads)
            before = {name: getattr(state, name) for name in ("opt_state", "batch_stats", "ema_batch_stats")}
            before |= {name: part(getattr(state, name)) for name in ("params", "ema_params")}
            updates, opt_state = tx.update(grads, state.opt_state, before["params"], step=state.step)
            params = optax.apply_updates(before["params"], updates)
            params = clip_logit_scale(params, config.model.logit_scale_max)
            averages = {name: before[name] for name in ("ema_params", "ema_batch_stats")}
            averages = updated_averages(config.optimizer, averages, params, batch_stats)

            finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            new = {"params": params, "opt_state": opt_state, "batch_stats": batch_stats} | averages
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, before)
            # Of the change itself, not of `updates`: a TPU sums it up while it writes the new parameters.
            update_norm = optax.tree.norm(jax.tree.map(jnp.subtract, new["params"], before["params"]))
            new |= {name: whole(getattr(state, name), new[name]) for name in ("params", "ema_params")}
        bad = 1 - finite.astype(jnp.int32)
        state = TrainState(
            step=state.step + 1,
            rng=state.rng,
            **new,
            skipped=state.skipped + bad,
            skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
        )
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "learning_rate": schedule(state.step - 1),
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        }
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    shardings = train_state_shardings(state, mesh)
    extra = [param_shardings(teacher.variables, mesh)] if teacher else []
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), *extra),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def lower_step(
    config: ExperimentConfig, mesh: Mesh, state: TrainState, teacher: Teacher | EmbeddedTeacher | None
) -> jax.stages.Lowered:
    """The step traced for this experiment's shapes, ready to compile; state: abstract_state's."""
    sharding = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in batch_shapes(config, teacher).items()
    }
    extra = (teacher.variables,) if teacher else ()
    return make_train_step(config, mesh, state, teacher).lower(state, batch, *extra)


def compile_step(config: ExperimentConfig, mesh: Mesh, teacher: Teacher | EmbeddedTeacher | None) -> Callable:
    """(state, batch) -> (state, metrics), compiled now, so that the first step is not mistaken for a slow one.

    Prints a line about the experiment's size and the time that compiling took.
    """
    started = time.perf_counter()
    state = abstract_state(config, mesh)
    compiled = lower_step(config, mesh, state, teacher).compile()
    extra = (teacher.variables,) if teacher else ()
    part = jax.eval_shape(functools.partial(trained, config), state.params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6 for tree in (state.params, part)]
    some = f" ({sizes[1]:.2f}M of them train)" if sizes[1] < sizes[0] else ""
    comm = step_comm(config, mesh)
    comm = comm if comm == config.loss.comm else f"{config.loss.comm}: {comm}"
    announce(
        f"{sizes[0]:.1f}M parameters{some}, loss {config.loss.name} ({comm}), "
        f"global batch {config.global_batch_size}, mesh {dict(mesh.shape)} of {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} process(es); compiled in {time.perf_counter() - started:.1f} s"
    )
    columns = batch_shapes(config, teacher)
    return lambda state, batch: compiled(state, {name: batch[name] for name in columns}, *extra)


def step_comm(config: ExperimentConfig, mesh: Mesh) -> str:
    """How this experiment's devices exchange embeddings: config.loss.comm, or the row that "auto" takes."""
    pairs = config.global_batch_size * config.data.captions_per_image
    return chosen_comm(config.loss, mesh, pairs, config.model.embed_dim)


def batch_shapes(
    config: ExperimentConfig, teacher: Teacher | EmbeddedTeacher | None = None
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """{name: (shape, dtype)} of the columns of a batch that this experiment's step takes."""
    size = config.global_batch_size
    image, text = config.model.image, config.model.text
    shapes = image_tower(image).columns(image, size)
    if config.data.image_embeddings:
        shapes = {"image_embedding": ((size, config.model.embed_dim), jnp.float32)}
    if isinstance(teacher, EmbeddedTeacher):
        shapes |= {name: ((size, teacher.embed_dim), jnp.float32) for name in teacher.columns}
    shapes |= text_tower(text).columns(text, size)
    if (captions := config.data.captions_per_image) > 1:
        shapes["text"] = ((size, captions, text.context_length), jnp.int32)
    return shapes if config.loss.repeats == "negatives" else shapes | {"pair_id": ((size,), jnp.int32)}
