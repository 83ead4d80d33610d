"""Weights that a run takes from another run: those it starts from, and those of its teacher."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, require
from clipjax.models.towers import towers_of
from clipjax.models.towers.absent import a_tower
from clipjax.optim.layers import TOWERS, multiplier
from clipjax.processes import announce
from clipjax.runs.fingerprint import check_fingerprint, to_train_on
from clipjax.runs.integrity import CheckpointError
from clipjax.runs.run import Run, open_run
from clipjax.runs.shapes import check_shapes
from clipjax.training.init_from import (
    Given,
    initial_state,
    new_projections,
    only,
    projections,
    taken,
    unused_options,
)
from clipjax.training.state import TrainState, abstract_state, create_state, eval_variables
from clipjax.training.teacher import EmbeddedTeacher, Teacher, make_teacher, needs_teacher
from clipjax.training.trainable import adapted, farthest

# The fields that name runs to start from -> the tower that each takes. init_from gives what the others do not.
FIELDS = {"init_image_from": "image", "init_text_from": "text", "init_from": ""}
# The entries of a fingerprint that are about a tower and what it reads.
ENTRIES = {"image": ("image.", "pixels."), "text": ("text.", "tokenizer.")}


def initialised(config: ExperimentConfig) -> dict[str, str]:
    """{field: workdir} of the runs that training starts from."""
    return {field: getattr(config, field) for field in FIELDS if getattr(config, field)}


def first_state(config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any]) -> TrainState:
    """The state of step 0: random weights, or those of the newest checkpoints in config.init_from and its like.

    Prints lines that say what comes from where, and what stays random. fingerprint: this experiment's. Raises
    CheckpointError naming the parameters that do not fit, and FingerprintError where the weights would mean something
    else here.
    """
    for warning in random_and_frozen(config):
        announce(warning)
    if not initialised(config):
        return create_state(config, mesh)
    with _open_given(config, mesh, fingerprint) as (given, line):
        announce(line)
        return initial_state(config, mesh, given)


def check_init_from(config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any]) -> str:
    """Raises what first_state would raise, without reading arrays; returns the lines that it would print."""
    if not initialised(config):
        return "\n".join(random_and_frozen(config))
    with _open_given(config, mesh, fingerprint) as (_, line):
        return "\n".join([*random_and_frozen(config), line])


def random_and_frozen(config: ExperimentConfig) -> list[str]:
    """Warnings about towers that start with random weights and are not trained, or not wholly."""
    fields = initialised(config)
    given = {FIELDS[field] for field in fields}
    lines = []
    for side in [] if "init_from" in fields else towers_of(config.model):
        if side in given or farthest(config, side) == math.inf:
            continue
        frozen = f"config.optimizer.{side}_lr_multiplier=0"
        if multiplier(config.optimizer, side):
            unlocked = f"config.optimizer.{side}_unlocked_blocks={getattr(config.optimizer, f'{side}_unlocked_blocks')}"
            frozen = "config.lora" if adapted(config, side) else unlocked
        lines.append(
            f"WARNING: the {side} tower starts with random weights, and {frozen} leaves "
            f"{'all' if farthest(config, side) < 0 else 'part'} of it untrained. Name weights to "
            f"start from with config.init_from or config.init_{side}_from."
        )
    return lines


@contextlib.contextmanager
def _open_given(config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any]) -> Iterator[tuple[list[Given], str]]:
    """(what each opened run gives, the line about it) of all that config names, checked."""
    expected = eval_variables(abstract_state(config, mesh))
    rest = frozenset(expected["params"])
    given, sources = [], {part: "new" for part in expected["params"]}
    with contextlib.ExitStack() as stack:
        for field, workdir in initialised(config).items():
            where = f"config.{field}={workdir}"
            run = stack.enter_context(open_named(f"config.{field}", workdir))
            source = eval_variables(abstract_state(run.config, mesh))
            unknown = frozenset(source["params"]) - frozenset(expected["params"]) - {"logit_bias"}
            each = _given(run, FIELDS[field], where, rest, unknown)
            rest -= each.parts
            _check_meaning(each, where, config, fingerprint)
            new = _check_shapes(each, where, config, expected, source)
            for part in each.parts:
                sources[part] = f"from {workdir}, step {run.step}" + " with a new projection" * (part in new)
            given.append(each)
        yield given, described(sources)


def described(sources: Mapping[str, str]) -> str:
    """One line of where the parts of a model come from: "Weights: image tower from runs/a, step 0; text tower new"."""
    names = {"image": "image tower", "text": "text tower", "logit_scale": "temperature", "decoder": "captioner"}
    grouped: dict[str, list[str]] = {}
    for part, name in names.items():
        if part in sources:
            grouped.setdefault(sources[part], []).append(name)
    listed = (", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1] for parts in grouped.values())
    return "Weights: " + "; ".join(f"{those} {source}" for those, source in zip(listed, grouped, strict=True))


def _given(run: Run, side: str, where: str, free: frozenset[str], unknown: frozenset[str]) -> Given:
    """What a run gives. Raises CheckpointError.

    side: the tower that its field takes; "": everything. where: the field and its value, for messages. free: the parts
    that no earlier field has given. unknown: those that only the run has.
    """
    has = towers_of(run.config.model)
    if not side and len(has) == len(TOWERS):
        return Given(run, free | unknown)
    side = side or has[0]
    if side not in has:
        raise CheckpointError(f"{where} holds only {a_tower(has[0])}, which config.init_{has[0]}_from takes.")
    if side not in free:
        raise CheckpointError(
            f"{where} holds only {a_tower(side)}, and config.init_{side}_from gives another one. Unset one of them."
        )
    return Given(run, frozenset({side}), one_tower=True)


def _check_meaning(given: Given, where: str, config: ExperimentConfig, fingerprint: dict[str, Any]) -> None:
    """Raises FingerprintError where the parts of `given` would mean something else here.

    where: the field and its value, for messages.
    """
    unused = unused_options(given.run.config.model, config.model)
    prefixes = tuple(prefix for side in TOWERS if side in given.parts for prefix in ENTRIES[side])
    theirs, ours = (
        {
            name: value
            for name, value in to_train_on(entries, config).items()
            if name not in unused and name.startswith(prefixes)
        }
        for entries in (given.run.fingerprint, fingerprint)
    )
    check_fingerprint(theirs, ours, where=where)


def _check_shapes(
    given: Given, where: str, config: ExperimentConfig, expected: dict[str, Any], source: dict[str, Any]
) -> list[str]:
    """The towers of `given` whose projection is new. Raises CheckpointError for parameters that do not fit.

    expected, source: the variables of this model and of the run's, as shapes.
    """
    fresh, refused = projections(expected), None
    try:
        convert = functools.partial(taken, given=given, target=config.model)
        adapted = jax.eval_shape(convert, source, fresh)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # another architecture, which `adapt` refuses
        adapted, refused = only(source, given.parts), error
    check_shapes(adapted, only(expected, given.parts), where=f"{where} does not fit the configuration")
    if refused:  # for something else than shapes
        raise CheckpointError(f"{where} does not fit the configuration: {refused}") from refused
    new = new_projections(source, fresh, given)
    for side in new:
        if getattr(config.optimizer, f"{side}_lr_multiplier") == 0:
            raise CheckpointError(
                f"{where} has no projection, so that this run's would be a random one, and it is frozen "
                f"(config.optimizer.{side}_lr_multiplier=0). {_without_projection(side, given.run.config)}"
            )
    return new


def _without_projection(side: str, trained: ExperimentConfig) -> str:
    none = {"image": "False", "text": "'none'"}[side]
    return (
        f"Set config.model.{side}.projection={none} and config.model.embed_dim={getattr(trained.model, side).width}, "
        "so that the tower's own output is the embedding, or train the tower."
    )


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
        towers = towers_of(run.config.model)
        require(
            len(towers) == len(TOWERS),
            f"config.loss.teacher={config.loss.teacher} holds only {a_tower(towers[0])}; a teacher needs both.",
        )
        return make_teacher(config, mesh, run, fingerprint, shapes_only=shapes_only)
