"""The same experiment on any layout of the mesh gives the same losses."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.mesh import batch_sharding
from tests.tiny import start, tiny_batches, tiny_config

pytestmark = pytest.mark.slow  # whole runs

STEPS = 20


def losses_of(config, num_devices=8):
    mesh, state, step = start(config, num_devices)
    losses = []
    for batch in tiny_batches(STEPS):
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state


@pytest.fixture(scope="module")
def one_device():
    return {
        loss: losses_of(tiny_config((1, 1, 1), loss=loss, comm="dense"), num_devices=1)[0]
        for loss in ("softmax", "sigmoid")
    }


@pytest.mark.parametrize(
    ("mesh", "comm", "loss"),
    [
        ((8, 1, 1), "all_gather", "softmax"),
        ((8, 1, 1), "ring", "sigmoid"),
        ((1, 8, 1), "all_gather", "sigmoid"),
        ((2, 2, 2), "ring", "softmax"),
        ((1, 2, 4), "all_gather", "sigmoid"),
    ],
)
def test_twenty_steps_on_eight_devices_equal_one_device(one_device, mesh, comm, loss):
    losses, _ = losses_of(tiny_config(mesh, loss=loss, comm=comm))
    np.testing.assert_allclose(losses, one_device[loss], rtol=1e-4)
    assert abs(losses[-1] - losses[0]) > 0.1, "the steps must change something for the comparison to mean anything"


def test_fsdp_stores_an_eighth_of_every_large_parameter_and_moment():
    config = tiny_config((1, 8, 1))
    _, state = losses_of(config)
    for tree in (state.params, state.opt_state):
        kernels = [
            leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if "mlp" in jax.tree_util.keystr(path)
            and "kernel" in jax.tree_util.keystr(path)
        ]  # fmt: skip
        assert kernels
        for leaf in kernels:
            assert leaf.addressable_shards[0].data.size == leaf.size // 8


def test_dropout_masks_do_not_depend_on_the_mesh():
    def with_dropout(mesh):
        config = tiny_config(mesh)
        image = replace(config.model.image, dropout=0.2, drop_path=0.2)
        return replace(config, model=replace(config.model, image=image))

    one = losses_of(with_dropout((1, 1, 1)), num_devices=1)[0]
    np.testing.assert_allclose(losses_of(with_dropout((4, 2, 1)))[0], one, rtol=1e-4)
