"""Where a run continues: at its newest checkpoint, under today's configuration, or at the beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.processes import announce
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.bad_records_log import add_causes
from clipjax.runs.config_changes import check_changes
from clipjax.runs.fingerprint import FingerprintError, check_fingerprint
from clipjax.runs.steps import checkpoints_of
from clipjax.runs.weights import first_state
from clipjax.training.state import TrainState


def restore_or_create(
    manager: Any, config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any], batches: Any
) -> TrainState:
    """The state to continue from, on this mesh; sets the data iterator `batches` to the batch that follows it.

    Raises FingerprintError, ConfigError or CheckpointError where the checkpoint and today's configuration disagree.
    """
    step = manager.latest_step()
    if step is None:
        return first_state(config, mesh, fingerprint)
    meta, changes = _compare(manager, step, config, fingerprint)
    state = checkpoints.restore(manager, step, config, mesh)
    batches.set_state(own_data_state(meta.data_states, jax.process_index(), jax.process_count()))
    announce(f"Restored step {step} from {manager.directory}")
    if changes:
        announce("The configuration differs from that step's:\n" + "\n".join(changes))
    return state


class Restart(NamedTuple):
    """The checkpoint that a run would continue from."""

    step: int
    data_states: list[dict[str, Any]]  # of every process that wrote it
    changes: list[str]  # a line for each field of the configuration that differs, and may


def check_restart(
    workdir: str | Path, step: int, config: ExperimentConfig, mesh: Mesh, fingerprint: dict[str, Any]
) -> Restart:
    """Whether a run of this configuration can continue from workdir's checkpoint `step`. Reads no array.

    Raises what restore_or_create would raise.
    """
    with checkpoints.open_read_only(checkpoints_of(workdir)) as manager:
        meta, changes = _compare(manager, step, config, fingerprint)
        checkpoints.check_fits(manager, step, config, mesh)
    return Restart(step, meta.data_states, changes)


def _compare(
    manager: Any, step: int, config: ExperimentConfig, fingerprint: dict[str, Any]
) -> tuple[checkpoints.Meta, list[str]]:
    checkpoints.refuse_weights_alone(manager, step)
    meta = checkpoints.read_meta(manager, step)
    where = f"{manager.directory}/{step}"
    try:
        check_fingerprint(meta.fingerprint, fingerprint, where=where)
    except FingerprintError as error:
        if meta.fingerprint.get("tokenizer.sha256") == fingerprint.get("tokenizer.sha256"):
            raise
        raise FingerprintError(f"{error}{_of_tokenizer(meta, config)}") from error
    return meta, check_changes(meta.given, config, where)


def _of_tokenizer(meta: checkpoints.Meta, config: ExperimentConfig) -> str:
    """A line about a tokenizer's file with another content than the run began with."""
    began, now = meta.given.tokenizer.path, config.tokenizer.path
    what = f"{now} has changed since the run began" if began == now else f"the run began with {began}, not {now}"
    kept = meta.config.tokenizer.path
    cure = f"; its copy is --config.tokenizer.path={kept}" if kept not in (began, now) else ""
    return f"\nconfig.tokenizer.path: {what}{cure}."


def own_data_state(states: list[dict], process_index: int, process_count: int) -> dict:
    """This process's data state, from the states of the processes that wrote the checkpoint.

    The position in the data is the same for all processes; the counts are each process's own. When the number of
    processes has changed, the first process takes over all counts, so that none is lost or doubled.
    """
    if len(states) == process_count:
        return states[process_index]
    if process_index:
        return states[0] | {"read": 0, "bad": {}}
    parts = {state.get("first_row", i): state for i, state in enumerate(states)}  # some processes read the same rows
    return states[0] | {
        "read": sum(state["read"] for state in parts.values()),
        "bad": add_causes(state["bad"] for state in parts.values()),
    }
