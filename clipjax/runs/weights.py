"""Weights that a run takes from another run: those it starts from, and those of its teacher."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.runs.checkpoint import check_shapes
from clipjax.runs.fingerprint import check_fingerprint, to_train_on
from clipjax.runs.integrity import CheckpointError
from clipjax.runs.run import Run, open_run
from clipjax.training.init_from import adapt, initial_state, unused_options
from clipjax.training.state import TrainState, abstract_state, create_state, eval_variables
from clipjax.training.teacher import EmbeddedTeacher, Teacher, make_teacher, needs_teacher


def first_state(config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any]) -> TrainState:
    """The state of step 0: random weights, or those of the newest checkpoint in config.init_from.

    fingerprint: this experiment's. Raises CheckpointError naming the parameters that do not fit, and FingerprintError
    where the weights would mean something else here.
    """
    if not config.init_from:
        return create_state(config, mesh)
    with open_named("config.init_from", config.init_from) as run:
        _check_first(run, config, mesh, fingerprint)
        return initial_state(config, mesh, run)


def check_init_from(config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any]) -> Run:
    """Raises what first_state would raise for config.init_from, without reading arrays; returns the run, closed."""
    with open_named("config.init_from", config.init_from) as run:
        _check_first(run, config, mesh, fingerprint)
    return run


def _check_first(run: Run, config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any]) -> None:
    where = f"config.init_from={config.init_from}"
    unused = unused_options(run.config.model, config.model)
    theirs, ours = (
        {name: value for name, value in to_train_on(entries, config).items() if name not in unused}
        for entries in (run.fingerprint, fingerprint)
    )
    check_fingerprint(theirs, ours, where=where)
    convert = functools.partial(adapt, source=run.config.model, target=config.model)
    expected = eval_variables(abstract_state(config, mesh))
    source = eval_variables(abstract_state(run.config, mesh))
    try:
        adapted = jax.eval_shape(convert, source)
    except (KeyError, TypeError, ValueError):  # parts of another architecture, which `adapt` does not expect
        adapted = source
    check_shapes(adapted, expected, where=f"{where} does not fit the configuration")


@contextlib.contextmanager
def open_named(field: str, workdir: str) -> Iterator[Run]:
    """open_run for a run that a field of the configuration names, which an error about the run then begins with."""
    with contextlib.ExitStack() as stack:
        try:
            run = stack.enter_context(open_run(workdir))
        except CheckpointError as error:
            message = str(error).replace("--checkpoint takes", f"{field} takes")
            raise CheckpointError(f"{field}={workdir}: {message}") from error
        yield run


def load_teacher(
    config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any] | None, *, shapes_only: bool = False
) -> Teacher | EmbeddedTeacher | None:
    """The newest checkpoint of config.loss.teacher as a teacher; None for a loss that has none.

    See make_teacher. Raises ConfigError naming what differs, CheckpointError where there is no checkpoint.
    """
    if not needs_teacher(config):
        return None
    with open_named("config.loss.teacher", config.loss.teacher) as run:
        return make_teacher(config, mesh, run, fingerprint, shapes_only=shapes_only)
