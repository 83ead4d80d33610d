"""Where a run goes on: the newest checkpoint under today's configuration, or the beginning."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig
from clipjax.processes import announce
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.bad_records_log import add_causes
from clipjax.runs.config_changes import check_changes
from clipjax.runs.fingerprint import check_fingerprint
from clipjax.training.init_from import initial_state
from clipjax.training.state import TrainState, create_state


def restore_or_create(manager: Any, config: ExperimentConfig, mesh: Mesh, prints: dict, batches: Any) -> TrainState:
    """The state to go on from; sets the data iterator to the batch that follows it."""
    step = manager.latest_step()
    if step is None:
        return initial_state(config, mesh, prints) if config.init_from else create_state(config, mesh)
    checkpoints.refuse_weights_alone(manager, step)
    trained, found = checkpoints.read_meta(manager, step)
    where = f"{manager.directory}/{step}"
    check_fingerprint(found, prints, where=where)
    changes = check_changes(trained, config, where)
    state, data_states = checkpoints.restore(manager, step, config, mesh)
    batches.set_state(own_data_state(data_states, jax.process_index(), jax.process_count()))
    announce(f"Restored step {step} from {manager.directory}")
    if changes:
        announce("The configuration is another one than at that step:\n" + "\n".join(changes))
    return state


def own_data_state(states: list[dict], process_index: int, process_count: int) -> dict:
    """The data state of one process, of those that another number of processes may have saved.

    Its place in the data is the same for all. What was counted is this process's own; when their number has changed,
    the first one takes all of it, so that no count is lost or doubled.
    """
    if len(states) == process_count:
        return states[process_index]
    if process_index:
        return states[0] | {"read": 0, "bad": {}}
    return states[0] | {
        "read": sum(state["read"] for state in states),
        "bad": add_causes(state["bad"] for state in states),
    }
