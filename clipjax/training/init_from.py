"""config.init_from: training that starts from another run's weights, on this mesh and in this layout."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, ModelConfig
from clipjax.interop.names import flatten
from clipjax.models.position import resample_positions
from clipjax.models.transformer import stack_layers, unstack_layers
from clipjax.optim.updates import make_optimizer
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.fingerprint import check_fingerprint, to_train_on
from clipjax.training.state import TrainState, abstract_state, create_state, eval_variables


def initial_state(config: ExperimentConfig, mesh: Mesh, prints: dict[str, Any]) -> TrainState:
    """create_state with the weights of config.init_from: its latest step, the average where that run kept one.

    prints: this experiment's fingerprint. A logit_bias that the source lacks starts at config's. Raises CheckpointError
    naming the parameters that do not fit, FingerprintError where the weights mean something else here.
    """
    manager, step = checkpoints.open_run(config.init_from)
    trained, found = checkpoints.read_meta(manager, step)
    where = f"config.init_from={config.init_from}"
    unused = unused_options(trained.model, config.model)
    here, there = ({n: v for n, v in to_train_on(p, config).items() if n not in unused} for p in (prints, found))
    check_fingerprint(there, here, where=where)

    convert = functools.partial(adapt, source=trained.model, target=config.model)
    target = eval_variables(abstract_state(config, mesh))
    check_fits(jax.eval_shape(convert, eval_variables(abstract_state(trained, mesh))), target, where)
    state = create_state(config, mesh)
    variables = checkpoints.restore_variables(manager, step, trained, mesh)
    manager.close()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    variables = jax.jit(convert, out_shardings=shardings)(variables)
    params, batch_stats = variables["params"], variables["batch_stats"]
    tx = make_optimizer(config.optimizer, params, config.total_steps)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
    state = state.replace(
        params=params, batch_stats=batch_stats, opt_state=jax.jit(tx.init, out_shardings=shardings)(params)
    )
    if state.ema_params is not None:
        copies = jax.tree.map(jnp.copy, (params, batch_stats))
        state = state.replace(ema_params=copies[0], ema_batch_stats=copies[1])
    return state


def unused_options(one: ModelConfig, other: ModelConfig) -> set[str]:
    """Names in a fingerprint of options that only one of two models' towers has, and leaves at their defaults.

    With them a tower computes what one without such an option does: a ViT without rotary positions and a NaFlex.
    """
    names = set()
    for side in ("image", "text"):
        towers = getattr(one, side), getattr(other, side)
        for a, b in (towers, towers[::-1]):
            default = type(a)()
            own = {name for name, value in vars(a).items() if not hasattr(b, name) and value == getattr(default, name)}
            names |= {f"{side}.{name}" for name in own}
    return names


def adapt(variables: dict[str, Any], *, source: ModelConfig, target: ModelConfig) -> dict[str, Any]:
    """The variables of model `source` as model `target` has them; traceable. Whatever changes shape on the way belongs
    here."""
    params = dict(variables["params"])
    for tower in ("image", "text"):
        wanted = getattr(getattr(target, tower), "scan_layers", None)  # None: a tower whose blocks differ in shape
        if wanted and any(name.startswith("block_") for name in params[tower]):
            params[tower] = stack_layers(params[tower])
        elif wanted is False and "blocks" in params[tower]:
            params[tower] = unstack_layers(params[tower])
    params = resample_positions(params, source, target)
    if target.logit_bias_init is None:
        params.pop("logit_bias", None)
    elif "logit_bias" not in params:
        params["logit_bias"] = jnp.full((), target.logit_bias_init, jnp.float32)
    return {**variables, "params": params}


def check_fits(found: Any, expected: Any, where: str) -> None:
    """Raises CheckpointError naming the variables whose shapes differ."""
    a, b = ({n: tuple(leaf.shape) for n, leaf in flatten(tree).items()} for tree in (found, expected))
    lines = [
        f"  {name}: there {a.get(name, 'nothing')}, configuration {b.get(name, 'nothing')}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
    if lines:
        more = f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise checkpoints.CheckpointError(f"{where} does not fit the configuration:\n" + "\n".join(lines[:20]) + more)
