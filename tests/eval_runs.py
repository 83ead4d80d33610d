"""Runs that were never trained, with checkpoints of a tiny model, for tests of what evaluates them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, from_config_dict
from clipjax.data.tokenizers import make_tokenizer
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.fingerprint import fingerprint
from clipjax.training.state import TrainState, abstract_state
from tests.runs import run_config


def fake_embed(config: ExperimentConfig, mesh: Mesh) -> tuple[Callable, Callable]:
    """What make_embed returns, of a model without layers: nothing is compiled, and the weights still count."""

    def unit(rows: Any, variables: Any) -> np.ndarray:
        first = np.asarray(jax.tree.leaves(variables["params"])[0])
        rows = (np.float32(rows) + 10 * np.sin(first.sum())) * (1 + np.arange(rows.shape[1]))
        return np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def embed_images(variables: Any, image: jax.Array) -> jax.Array:
        rows = np.asarray(image).reshape(len(image), -1)[:, : 8 * 97 : 97]
        return jax.device_put(unit(rows, variables), batch_sharding(mesh))

    def embed_texts(variables: Any, tokens: np.ndarray) -> np.ndarray:
        return unit(np.sort(tokens, axis=1)[:, :8] * 2, variables)

    return embed_images, embed_texts


def run_of(data: Path, **changes: Any) -> ExperimentConfig:
    """The configuration of a run on build_data's data; changes: of its fields, by dotted name with "__"."""
    config = run_config(data)
    for name, value in changes.items():
        section = config
        *sections, last = name.split("__")
        for key in sections:
            section = section[key]
        section[last] = value
    return from_config_dict(config)


def start_of(config: ExperimentConfig) -> TrainState:
    """A state of random numbers in host memory: nothing is compiled, neither here nor where it is saved."""
    rng = np.random.default_rng(0)
    shapes = abstract_state(config, make_mesh(config.mesh))
    return jax.tree.map(lambda leaf: rng.uniform(0, 2, leaf.shape).astype(leaf.dtype), shapes)


def save_steps(
    workdir: Path, config: ExperimentConfig, state: TrainState, steps: list[int], metrics: dict | None = None
) -> None:
    """Writes checkpoints of these steps: the state's weights, a little larger at each step.

    metrics: step -> the results that the checkpoint is saved with.
    """
    own = fingerprint(config, make_tokenizer(config.tokenizer, config.model.text.context_length))
    with checkpoints.open_checkpoints(workdir, config.checkpoint) as manager:
        for step in steps:
            params = jax.tree.map(lambda leaf, step=step: np.float32(leaf * (1 + step / 100)), state.params)
            at = dataclasses.replace(state, step=np.int32(step), params=params)
            checkpoints.save(
                manager, at, data_state={"bad": {}}, config=config, fingerprint=own, metrics=(metrics or {}).get(step)
            )
            manager.wait_until_finished()
