"""Where parameters live: one table of rules serves data, FSDP and tensor parallelism."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipjax.config import ConfigError, MeshConfig
from clipjax.mesh import (
    initialize_distributed,
    make_mesh,
    param_shardings,
    partition_spec,
    reading_part,
    state_shardings,
)


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


def mesh_of(processes, data, tensor):
    """What reading_part asks of a mesh whose devices, in order, are those processes'."""
    devices = np.array([SimpleNamespace(process_index=p) for p in processes], object)
    return SimpleNamespace(devices=devices.reshape(data, 1, tensor), shape={"data": data, "fsdp": 1, "tensor": tensor})


@pytest.mark.parametrize(
    ("processes", "tensor", "parts"),
    [
        ("00112233", 1, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ("00112233", 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ("00112233", 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ("00112233", 8, [(0, 1)] * 4),
        ("01230123", 1, [(0, 4), (1, 4), (2, 4), (3, 4)]),  # as a torus is walked: rows that are not consecutive
        ("0101232301012323", 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # v5e:4x4, a row of which crosses two hosts
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same_part(processes, tensor, parts):
    mesh = mesh_of(map(int, processes), len(processes) // tensor, tensor)
    assert [reading_part(mesh, p) for p in range(4)] == parts


def test_hosts_with_different_numbers_of_devices_are_refused():
    with pytest.raises(ConfigError, match=r"numbers of devices: 1 process\(es\) with 3, 1 process\(es\) with 5"):
        reading_part(mesh_of([0, 0, 0, 1, 1, 1, 1, 1], 8, 1))


def test_a_tensor_axis_that_shares_some_rows_and_not_others_is_refused():
    with pytest.raises(ConfigError, match="tensor=2 lets processes share some rows.*divides the 3 device"):
        reading_part(mesh_of([0, 0, 0, 1, 1, 1], 3, 2))


def test_an_axis_that_a_torus_has_no_whole_side_for_is_laid_along_a_part_of_one(monkeypatch):
    """JAX's default refuses fsdp=4 on v6e:8x8, for example."""
    from jax.experimental import mesh_utils

    asked = []

    def refuse(shape, names, *, axis_types, devices):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 1 of size 4")

    def lay(shape, devices, allow_split_physical_axes):
        asked.append(allow_split_physical_axes)
        return np.array(devices).reshape(shape)

    monkeypatch.setattr(jax, "make_mesh", refuse)
    monkeypatch.setattr(mesh_utils, "create_device_mesh", lay)
    assert dict(make_mesh(MeshConfig(fsdp=4)).shape) == {"data": 2, "fsdp": 4, "tensor": 1} and asked == [True]
