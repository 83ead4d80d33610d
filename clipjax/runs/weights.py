"""Weights that a run takes from another run: those it starts from, and those of its teacher."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.runs.checkpoint import check_shapes
from clipjax.runs.fingerprint import check_fingerprint, to_train_on
from clipjax.runs.run import open_run
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
    with open_run(config.init_from) as run:
        where = f"config.init_from={config.init_from}"
        unused = unused_options(run.config.model, config.model)
        theirs, ours = (
            {name: value for name, value in to_train_on(entries, config).items() if name not in unused}
            for entries in (run.fingerprint, fingerprint)
        )
        check_fingerprint(theirs, ours, where=where)
        convert = functools.partial(adapt, source=run.config.model, target=config.model)
        adapted = jax.eval_shape(convert, eval_variables(abstract_state(run.config, mesh)))
        expected = eval_variables(abstract_state(config, mesh))
        check_shapes(adapted, expected, where=f"{where} does not fit the configuration")
        return initial_state(config, mesh, run)


def load_teacher(
    config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any] | None, *, shapes_only: bool = False
) -> Teacher | EmbeddedTeacher | None:
    """The newest checkpoint of config.loss.teacher as a teacher; None for a loss that has none.

    See make_teacher. Raises ConfigError naming what differs, CheckpointError where there is no checkpoint.
    """
    if not needs_teacher(config):
        return None
    with open_run(config.loss.teacher) as run:
        return make_teacher(config, mesh, run, fingerprint, shapes_only=shapes_only)
