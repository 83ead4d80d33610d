"""The compiled step holds nothing as large as the batch squared, and FSDP gathers parameters only."""

import functools
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.config import MeshConfig
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models.attention import attention, in_chunks
from clipjax.optim import OPTIMIZERS
from clipjax.planning.hlo import collectives, parse, shapes_in
from clipjax.training.state import abstract_state
from clipjax.training.step import lower_step
from tests.tiny import tiny_config

BATCH = 1024


def compiled_text(config, devices=8):
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    return lower_step(config, mesh, abstract_state(config, mesh), None).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "comm", "mesh", "accumulation"),
    [
        ("softmax", "all_gather", (8, 1, 1), 1),
        ("softmax", "ring", (4, 2, 1), 1),
        ("sigmoid", "all_gather", (2, 2, 2), 4),
    ],
)
def test_no_array_of_the_step_is_as_large_as_the_similarities(loss, comm, mesh, accumulation):
    config = tiny_config(mesh, loss=loss, comm=comm)
    config = replace(
        config, global_batch_size=BATCH, accumulation_steps=accumulation, loss=replace(config.loss, tile=64)
    )
    rows = BATCH // (mesh[0] * mesh[1])
    shapes = shapes_in(compiled_text(config))
    assert (64, 64) in shapes, "the tile"
    large = {BATCH, rows}
    assert not [s for s in shapes if len(s) >= 2 and set(s[-2:]) <= large and BATCH in s[-2:]]
    # "dense" has such an array, which shows that the search finds it.
    if comm == "ring":
        dense = shapes_in(compiled_text(replace(config, loss=replace(config.loss, comm="dense"))))
        assert {(BATCH, BATCH), (rows, BATCH)} & dense


def shards(tree):
    return [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "bv_adam"])
def test_fsdp_gathers_parameters_and_nothing_of_the_optimizer(name):
    config = replace(tiny_config((1, 8, 1)), global_batch_size=BATCH)
    config = replace(config, optimizer=OPTIMIZERS[name].config(learning_rate=1e-3, weight_decay=1e-4))
    mesh = make_mesh(config.mesh, jax.devices())
    state = abstract_state(config, mesh)
    params = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    sharded = sum(4 * int(np.prod(shape)) for shape in shards(state.params))
    assert sharded < 0.25 * params, "parameters lie on the devices in eighths, but for those no rule cuts"

    moved = collectives(parse(compiled_text(config)), 8)
    gathered = [c for c in moved if c.kind == "all-gather"]
    # Forward, backward, and once more where a layer is rematerialised; moments would be two more.
    assert 0 < sum(c.bytes_out * c.times for c in gathered if "shard_map" not in c.op_name) <= 2.1 * params
    assert not [c for c in gathered if "/optimizer/" in c.op_name]
    # Nor is an activation summed over devices that hold slices of a width: norms need no communication.
    assert not [c for c in moved if c.kind == "all-reduce" and re.match(r"jit\(train_step\)/jvp\(Dual", c.op_name)]


@pytest.mark.slow
def test_tensor_parallel_computes_a_share_of_every_block():
    config = replace(tiny_config((1, 1, 4)), global_batch_size=64)
    shapes = shapes_in(compiled_text(config, devices=4))
    mlp = config.model.image.mlp_dim
    rows = 64 * 16  # tokens of the whole batch: the batch is not sharded here
    assert (rows, mlp // 4) in shapes
    assert (rows, mlp) not in shapes


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_chunks_is_attention_and_stays_on_its_device(masked):
    """Values and gradients, heads over tensor, every example with its own padding or none; a chunk that does not divide
    a device's examples shrinks."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    sharding = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    q, k, v, g = (jax.random.normal(jax.random.key(i), (24, 5, 4, 8)) for i in range(4))

    def value_and_grads(attend):
        return jax.jit(lambda *args: (attend(*args), *jax.vjp(attend, *args)[1](g)), in_shardings=(sharding,) * 3)

    def attend(q, k, v, mask=None):
        return attention(q, k, v, causal=not masked, mask=mask)

    seen = np.arange(5) < 1 + np.arange(24)[:, None] % 5
    mask = (jax.device_put(seen, batch_sharding(mesh)),) if masked else ()
    divide = functools.partial(in_chunks, attend, 4)
    whole, divided = (lambda q, k, v, f=f: f(q, k, v, *mask) for f in (attend, divide(batch_sharding(mesh))))
    chunked = value_and_grads(divided)
    for found, expected in zip(chunked(q, k, v), value_and_grads(whole)(q, k, v), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(divide(None)(q, k, v, *mask), whole(q, k, v), atol=2e-6)  # on one device
    text = chunked.lower(q, k, v).compile().as_text()
    assert not collectives(parse(text), 8)
    assert (3, 2, 5, 5) in shapes_in(text), "three of a device's six examples at a time"
