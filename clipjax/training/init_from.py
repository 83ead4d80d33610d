"""config.init_from: training that starts from another run's weights, on this mesh and in this layout."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, ModelConfig
from clipjax.models.position import resample_positions
from clipjax.models.transformer import stack_layers, unstack_layers
from clipjax.optim.layers import ADAPTERS, TEMPERATURE
from clipjax.training.ema import first_averages
from clipjax.training.state import TrainState, Weights, abstract_state, create_state, eval_variables
from clipjax.training.trainable import make_tx


def initial_state(config: ExperimentConfig, mesh: Mesh, trained: Weights) -> TrainState:
    """create_state with the weights of an open run: its averages where it kept them.

    A logit_bias that the run lacks starts at config's, and both temperatures do with config.init_temperature
    "restarted". A run's adapters are merged into its weights, and new ones (config.lora) start beside them. The adapted
    weights must have the configuration's shapes: clipjax.runs.weights compares them.
    """
    state = create_state(config, mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, eval_variables(abstract_state(config, mesh)))
    convert = functools.partial(adapt, source=trained.config.model, target=config.model)
    variables = jax.jit(convert, out_shardings=layout)(trained.variables(mesh))
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


def unused_options(one: ModelConfig, other: ModelConfig) -> set[str]:
    """Fingerprint names of the options that only one of two models' towers has, and that are at their defaults.

    Such an option makes no difference at its default: a ViT without rotary positions computes what a NaFlex computes.
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
    """The variables of model `source` in the layout of model `target`; traceable.

    Every conversion that changes a shape belongs here.
    """
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
