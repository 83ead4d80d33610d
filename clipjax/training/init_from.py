"""config.init_from: training that starts from the weights of other runs, on this mesh and in this layout."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, ModelConfig
from clipjax.models.position import resample_positions
from clipjax.models.transformer import stack_layers, unstack_layers
from clipjax.optim.layers import ADAPTERS, TEMPERATURE, TOWERS
from clipjax.training.ema import first_averages
from clipjax.training.state import TrainState, Weights, abstract_state, create_state, eval_variables
from clipjax.training.trainable import make_tx, trained


class Given(NamedTuple):
    """What one opened run gives to the weights that training starts from."""

    run: Weights
    parts: frozenset[str]  # names at the top of the tree of parameters: "image", "text", "logit_scale" ...
    one_tower: bool = False  # given by a tower alone, whose projection may be new (see `taken`)


def initial_state(config: ExperimentConfig, mesh: Mesh, given: Sequence[Given]) -> TrainState:
    """create_state with the weights of open runs: their averages where they kept them. What none gives stays fresh.

    A logit_bias that the run lacks starts at config's, and both temperatures do with config.init_temperature
    "restarted". A run's adapters are merged into its weights, and new ones (config.lora) start beside them. The adapted
    weights must have the configuration's shapes: clipjax.runs.weights compares them.
    """
    state = create_state(config, mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, eval_variables(abstract_state(config, mesh)))
    variables = {"params": dict(state.params), "batch_stats": dict(state.batch_stats)}
    for each in given:
        convert = functools.partial(taken, given=each, target=config.model)
        placed = jax.jit(convert, out_shardings=only(layout, each.parts))(
            each.run.variables(mesh), projections(variables)
        )
        for collection, tree in placed.items():
            variables[collection] |= tree
    params, batch_stats = variables["params"], variables["batch_stats"]
    kept = (ADAPTERS, *TEMPERATURE) if config.init_temperature == "restarted" else (ADAPTERS,)
    params |= {name: state.params[name] for name in kept if name in state.params}
    tx = make_tx(config, params)
    layout = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
    return state.replace(
        params=params,
        batch_stats=batch_stats,
        opt_state=jax.jit(lambda params: tx.init(trained(config, params)), out_shardings=layout)(params),
        **first_averages(config.optimizer, params, batch_stats),
    )


def only(variables: dict[str, Any], parts: frozenset[str]) -> dict[str, Any]:
    """The parts of {"params": tree, "batch_stats": tree}."""
    return {c: {name: tree[name] for name in tree if name in parts} for c, tree in variables.items()}


def projections(variables: dict[str, Any]) -> dict[str, Any]:
    """{tower: {name: tree}} of the parameters of each tower's projection; {} for a tower without one."""
    params = variables["params"]
    return {
        side: {name: params[side][name] for name in params[side] if name.startswith("projection")}
        for side in TOWERS
        if side in params
    }


def taken(variables: dict[str, Any], fresh: dict[str, Any], *, given: Given, target: ModelConfig) -> dict[str, Any]:
    """The parts of a run's variables in the layout of model `target`; traceable.

    fresh: the target's own `projections`. A tower that is given alone and has no projection, as many published image
    towers, keeps the fresh one.
    """
    parts = given.parts
    found = only(adapt(only(variables, parts), source=given.run.config.model, target=target), parts)
    for side in new_projections(variables, fresh, given):
        found["params"][side] = found["params"][side] | fresh[side]
    return found


def new_projections(variables: dict[str, Any], fresh: dict[str, Any], given: Given) -> list[str]:
    """The towers that `taken` gives the target's fresh projection. variables, fresh: shapes are enough."""
    own = projections(variables)
    sides = [side for side in own if side in given.parts] if given.one_tower else []
    return [side for side in sides if fresh.get(side) and not own[side]]


def unused_options(one: ModelConfig, other: ModelConfig) -> set[str]:
    """Fingerprint names of the options that only one of two models' towers has, and that are at their defaults.

    Such an option makes no difference at its default: a ViT without rotary positions computes what a NaFlex computes.
    """
    names = set()
    for side in TOWERS:
        towers = getattr(one, side), getattr(other, side)
        for a, b in (towers, towers[::-1]):
            default = type(a)()
            own = {name for name, value in vars(a).items() if not hasattr(b, name) and value == getattr(default, name)}
            names |= {f"{side}.{name}" for name in own}
    return names


def adapt(variables: dict[str, Any], *, source: ModelConfig, target: ModelConfig) -> dict[str, Any]:
    """The variables of model `source`, or of one of its towers, in the layout of model `target`; traceable.

    Every conversion that changes a shape belongs here.
    """
    params = dict(variables["params"])
    for tower in [name for name in TOWERS if name in params]:
        wanted = getattr(getattr(target, tower), "scan_layers", None)  # None: a tower whose blocks differ in shape
        if wanted and any(name.startswith("block_") for name in params[tower]):
            params[tower] = stack_layers(params[tower])
        elif wanted is False and "blocks" in params[tower]:
            params[tower] = unstack_layers(params[tower])
    params = resample_positions(params, source, target)
    if target.logit_bias_init is None:
        params.pop("logit_bias", None)
    elif "logit_bias" not in params and "logit_scale" in params:
        params["logit_bias"] = jnp.full((), target.logit_bias_init, jnp.float32)
    return {**variables, "params": params}
