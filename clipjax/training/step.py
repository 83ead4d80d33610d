"""One step of training as a pure function: (TrainState, batch) -> (TrainState, metrics)."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.data.cut import REST, WHOLE
from clipjax.losses import chosen_comm
from clipjax.machine.xla_options import compile_known, describe_options, step_options
from clipjax.mesh import batch_sharding, param_shardings, replicated
from clipjax.models import image_tower, text_tower
from clipjax.optim import make_schedule
from clipjax.processes import announce, meet
from clipjax.training.apply_update import apply_update
from clipjax.training.cut import budgets, describe_text_cut, text_cut
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.state import TrainState, abstract_state, train_state_shardings
from clipjax.training.teacher import EmbeddedTeacher, Teacher
from clipjax.training.trainable import joined, make_tx, trained

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Shape = tuple[tuple[int, ...], Any]  # of a column: (shape, dtype)


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
      Texts may be shorter, and in two columns, as clipjax/data/cut.py cuts them.
    Metrics: float32 scalars, replicated: loss, grad_norm, update_norm, logit_scale, logit_bias,
      learning_rate, skipped, skipped_in_a_row, text_length (tokens, on average) where texts are cut, and what the loss
      adds.

    A step whose loss or gradient is not finite changes nothing except the counters, and its update_norm is 0. The
    learning rate of an update is the one that is logged, and follows state.step: skipped steps pass in the schedule, so
    that it ends where it should. The optimizer's own counts (Adam's bias correction) are of the updates that were kept.
    Parameters that do not train (training/trainable.py) are returned as they came, and grad_norm and update_norm are
    those of the others.
    """
    tx = make_tx(config, state.params)
    schedule = make_schedule(config.optimizer, config.total_steps)
    loss_and_gradients = make_loss_and_gradients(config, mesh, teacher)
    cut = text_cut(config, teacher)

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
            finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

            def update() -> tuple[Any, Any]:
                return tx.update(grads, before["opt_state"], before["params"], step=state.step)

            new, update_norm = apply_update(config, mesh, finite, before, batch_stats, update)
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
            **({"text_length": mean_length(batch)} if cut else {}),
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


def mean_length(batch: Batch) -> float:
    """The columns of a text, padding included, on average over a batch."""
    parts = [batch[name] for name in ("text", REST) if name in batch]
    return sum(part.size for part in parts) / sum(part.size // part.shape[-1] for part in parts)


def lower_step(
    config: ExperimentConfig,
    mesh: Mesh,
    state: TrainState,
    teacher: Teacher | EmbeddedTeacher | None,
    shapes: Mapping[str, Shape] | None = None,
) -> jax.stages.Lowered:
    """The step traced for a batch of these shapes (None: batch_shapes), ready to compile; state: abstract_state's."""
    sharding = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in (shapes or batch_shapes(config, teacher)).items()
    }
    extra = (teacher.variables,) if teacher else ()
    return make_train_step(config, mesh, state, teacher).lower(state, batch, *extra)


def compile_lowered(
    lowered: jax.stages.Lowered, mesh: Mesh, more: Mapping[str, Any] | None = None
) -> tuple[jax.stages.Compiled, str]:
    """The step compiled with the devices' options (clipjax/machine/xla_options.py), and the line about them, or "".

    more: further options of XLA's, which count before those.
    """
    devices = list(mesh.devices.flat)
    options = step_options(devices) | dict(more or {})
    compiled, unknown = compile_known(lambda known: lowered.compile(compiler_options=known or None), options)
    return compiled, describe_options({n: value for n, value in options.items() if n not in unknown}, devices)


class CompiledSteps:
    """(state, batch) -> (state, metrics), by a program for each shape of a batch, compiled when a batch first has it.

    Where a program's memory is reserved on a device, the longest is compiled at once, so that a step that does not fit
    is not met in the middle of a run. All processes call it together.
    """

    def __init__(self, config: ExperimentConfig, mesh: Mesh, teacher: Teacher | EmbeddedTeacher | None):
        self.config, self.mesh, self.teacher = config, mesh, teacher
        self.state, self.columns = abstract_state(config, mesh), batch_shapes(config, teacher)
        self.programs: dict[tuple, Callable] = {}
        self.compile_seconds = 0.0  # so far
        self.options = ""  # the line about XLA's options
        self.cut = text_cut(config, teacher)
        one = self.cut is None and not budgets(config)
        if one or mesh.devices.flat[0].platform != "cpu":
            self.compile(self.columns)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shapes = {name: (batch[name].shape, batch[name].dtype) for name in (*self.columns, REST) if name in batch}
        if _key(shapes) not in self.programs:
            jax.block_until_ready(state)  # the time of earlier steps is not this program's
            seconds = self.compile(shapes)
            meet(f"the first step of {_lengths(shapes)}")
            announce(f"compiled the step for {_lengths(shapes)} in {seconds:.1f} s")
        extra = (self.teacher.variables,) if self.teacher else ()
        return self.programs[_key(shapes)](state, {name: batch[name] for name in shapes}, *extra)

    def compile(self, shapes: Mapping[str, Shape]) -> float:
        """Compiles the program for a batch of these shapes; returns the seconds that it took."""
        started = time.perf_counter()
        lowered = lower_step(self.config, self.mesh, self.state, self.teacher, shapes)
        self.programs[_key(shapes)], self.options = compile_lowered(lowered, self.mesh)
        seconds = time.perf_counter() - started
        self.compile_seconds += seconds
        return seconds


def _key(shapes: Mapping[str, Shape]) -> tuple:
    return tuple(sorted((name, shape) for name, (shape, _) in shapes.items()))


def _lengths(shapes: Mapping[str, Shape]) -> str:
    """'texts of 24 tokens', or 'texts of 24 and 77 tokens, images of 256 patches'."""
    texts = f"texts of {' and '.join(str(shapes[name][0][-1]) for name in ('text', REST) if name in shapes)} tokens"
    return texts + (f", images of {shapes['image'][0][1]} patches" if "spatial_shape" in shapes else "")


def compile_step(config: ExperimentConfig, mesh: Mesh, teacher: Teacher | EmbeddedTeacher | None) -> CompiledSteps:
    """The run's step, compiled now where it has one program, so that the first step is not mistaken for a slow one.

    Prints a line about the experiment's size and the time that compiling took.
    """
    steps = CompiledSteps(config, mesh, teacher)
    params = steps.state.params
    part = jax.eval_shape(functools.partial(trained, config), params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6 for tree in (params, part)]
    some = f" ({sizes[1]:.2f}M of them train)" if sizes[1] < sizes[0] else ""
    texts = describe_text_cut(config, steps.cut)
    comm = step_comm(config, mesh)
    comm = comm if comm == config.loss.comm else f"{config.loss.comm}: {comm}"
    announce(
        f"{sizes[0]:.1f}M parameters{some}, loss {config.loss.name} ({comm}), "
        f"global batch {config.global_batch_size}, {f'{texts}, ' if texts else ''}mesh {dict(mesh.shape)} of "
        f"{jax.devices()[0].device_kind}, {jax.process_count()} process(es)"
        + (f"; compiled in {steps.compile_seconds:.1f} s" if steps.programs else "")
        + (f"; {steps.options}" if steps.options else "")
    )
    return steps


def step_comm(config: ExperimentConfig, mesh: Mesh) -> str:
    """How this experiment's devices exchange embeddings: config.loss.comm, or the row that "auto" takes."""
    pairs = config.global_batch_size * config.data.captions_per_image
    return chosen_comm(config.loss, mesh, pairs, config.model.embed_dim)


def batch_shapes(
    config: ExperimentConfig, teacher: Teacher | EmbeddedTeacher | None = None
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """{name: (shape, dtype)} of the columns of the largest batch that this experiment's step takes."""
    size = config.global_batch_size
    image, text = config.model.image, config.model.text
    if patches := budgets(config):
        image = dataclasses.replace(image, max_patches=max(patches))
    shapes = image_tower(image).columns(image, size)
    if config.data.image_embeddings:
        shapes = {"image_embedding": ((size, config.model.embed_dim), jnp.float32)}
    if isinstance(teacher, EmbeddedTeacher):
        shapes |= {name: ((size, teacher.embed_dim), jnp.float32) for name in teacher.columns}
    shapes |= text_tower(text).columns(text, size)
    if (captions := config.data.captions_per_image) > 1:
        shapes["text"] = ((size, captions, text.context_length), jnp.int32)
    if (cut := text_cut(config, teacher)) and cut.keep_whole:
        shapes[WHOLE] = shapes["text"]
    return shapes if config.loss.repeats == "negatives" else shapes | {"pair_id": ((size,), jnp.int32)}
