"""A model of a few thousand parameters and batches of noise, for tests of the machinery around them."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from clipjax.config import ExperimentConfig, MeshConfig
from clipjax.losses import LOSSES
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.optim.adamw import AdamWConfig
from clipjax.training.state import abstract_state, create_state
from clipjax.training.step import make_train_step

BATCH, IMAGE_SIZE, CONTEXT, VOCAB = 16, 16, 8, 64


def tiny_config(mesh: tuple[int, int, int] = (-1, 1, 1), loss: str = "sigmoid", comm: str = "all_gather", **optimizer):
    """SigLIP's shape at width 32 (image tower scanned, text tower unrolled), batch 16, 20 steps."""
    siglip = get_preset("siglip_b16")
    shared = dict(width=32, num_heads=4, mlp_dim=64)
    image = replace(siglip.image, image_size=IMAGE_SIZE, patch_size=4, depth=2, **shared)
    text = replace(siglip.text, vocab_size=VOCAB, context_length=CONTEXT, depth=1, scan_layers=False, **shared)
    model = replace(siglip, image=image, text=text, embed_dim=32)
    return ExperimentConfig(
        total_steps=20,
        global_batch_size=BATCH,
        model=model,
        loss=LOSSES[loss].config(name=loss, comm=comm),
        mesh=MeshConfig(*mesh),
        optimizer=AdamWConfig(**{"learning_rate": 1e-3, "weight_decay": 0.1, **optimizer}),
    )


def tiny_batches(count: int, batch: int = BATCH) -> list[dict[str, np.ndarray]]:
    """The same `count` batches of noise at every call: image uint8 [batch, 16, 16, 3], text int32 [batch, 8]."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (batch, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8),
            "text": rng.integers(0, VOCAB, (batch, CONTEXT), dtype=np.int32),
        }
        for _ in range(count)
    ]


_COMPILED: dict = {}  # a step is compiled once per test process, whoever asks


def start(config: ExperimentConfig, num_devices: int = 8):
    """(mesh, fresh state, compiled step) on the first num_devices devices."""
    key = (repr(config), num_devices)
    if key not in _COMPILED:
        mesh = make_mesh(config.mesh, jax.devices()[:num_devices])
        state = create_state(config, mesh)
        _COMPILED[key] = mesh, jax.tree.map(np.array, state), make_train_step(config, mesh, state)
        return mesh, state, _COMPILED[key][2]
    mesh, state, step = _COMPILED[key]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    return mesh, jax.device_put(state, shardings), step
