"""Where parameters live: one table of rules serves data, FSDP and tensor parallelism."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from clipjax.config import ConfigError, MeshConfig
from clipjax.mesh import initialize_distributed, make_mesh, param_shardings, partition_spec, state_shardings


@pytest.mark.parametrize(
    ("shape", "expected"), [((-1, 1, 1), (8, 1, 1)), ((-1, 4, 2), (1, 4, 2)), ((2, 2, 2), (2, 2, 2))]
)
def test_mesh_fills_in_the_data_axis(shape, expected):
    mesh = make_mesh(MeshConfig(*shape))
    assert tuple(mesh.shape.values()) == expected
    assert mesh.axis_names == ("data", "fsdp", "tensor")


def test_layer_axis_of_scanned_blocks_is_not_sharded():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert partition_spec("image/blocks/mlp/up/kernel", (12, 64, 256), mesh) == P(None, "fsdp", "tensor")
    assert partition_spec("image/block_3/mlp/up/kernel", (64, 256), mesh) == P("fsdp", "tensor")
    assert partition_spec("text/blocks/ln_1/scale", (12, 64), mesh) == P()


def test_a_dimension_its_axis_does_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    assert partition_spec("text/projection/kernel", (12, 64), mesh) == P(None, None)


def test_moments_lie_as_their_parameters_and_counters_are_replicated():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    params = {"image": {"patch_embed": {"kernel": jnp.zeros((12, 64))}}, "logit_scale": jnp.zeros(())}
    state = {
        "mu": params,
        "count": jnp.zeros((), jnp.int32),
        "row": {"image": {"patch_embed": {"kernel": jnp.ones(12)}}},
    }
    found = state_shardings(state, params, mesh)
    assert found["mu"] == param_shardings(params, mesh)
    assert found["mu"]["image"]["patch_embed"]["kernel"].spec == P(None, "fsdp")
    assert found["count"].spec == P()
    assert found["row"]["image"]["patch_embed"]["kernel"].spec == P()


def test_starting_by_hand_needs_all_three_arguments():
    with pytest.raises(ConfigError, match="--process_id go together"):
        initialize_distributed("localhost:1", 2, None)
    initialize_distributed()
    assert jax.process_count() == 1
