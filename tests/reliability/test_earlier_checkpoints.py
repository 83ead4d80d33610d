"""A checkpoint stored before Orbax's handler_registry replaced item_handlers is read as it was.

stored/by_item_handlers.tar.xz was written on four devices (data 2, fsdp 2) by clipjax 0.1 with Orbax 0.12.8 and JAX
0.10.2: step 7 of small(), in which leaf i of params, ema_params and opt_state counts up from 100 i.
"""

import tarfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from clipjax.config import MeshConfig
from clipjax.mesh import make_mesh
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.integrity import CheckpointError
from tests.tiny import tiny_config

STORED = Path(__file__).parent / "stored" / "by_item_handlers.tar.xz"
COUNTED = ("params", "ema_params", "opt_state")


def small():
    config = tiny_config(mesh=(2, 2, 1), ema_decay=0.5)
    narrow = dict(width=8, num_heads=2, mlp_dim=8)
    image = replace(config.model.image, depth=1, **narrow)
    text = replace(config.model.text, vocab_size=16, **narrow)
    return replace(config, model=replace(config.model, image=image, text=text, embed_dim=8))


@pytest.fixture
def directory(tmp_path):
    with tarfile.open(STORED) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "checkpoints"


def counts_up(tree) -> bool:
    return all(
        np.array_equal(leaf, (np.arange(leaf.size).reshape(leaf.shape) + 100 * i).astype(leaf.dtype))
        for i, leaf in enumerate(jax.tree.leaves(tree))
    )


@pytest.mark.parametrize("mesh", [(2, 2, 1), (8, 1, 1)])
def test_a_checkpoint_of_item_handlers_is_restored_to_the_bit_on_any_mesh(directory, mesh):
    config = replace(small(), mesh=MeshConfig(*mesh))
    devices = make_mesh(config.mesh, jax.devices()[: np.prod(mesh)])
    with checkpoints.open_read_only(directory) as manager:
        state = checkpoints.restore(manager, 7, config, devices)
        meta = checkpoints.read_meta(manager, 7)
    assert int(state.step) == 7 and all(counts_up(getattr(state, name)) for name in COUNTED)
    assert meta.config == small() and meta.data_states == [{"batch": 7}]


def test_the_shapes_of_a_tree_are_read_before_its_arrays(directory, monkeypatch):
    monkeypatch.setattr(ocp.CheckpointManager, "restore", lambda *_, **__: pytest.fail("read the arrays"))
    config = small()
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    wider = replace(config, model=replace(config.model, embed_dim=16))
    with checkpoints.open_read_only(directory) as manager:
        checkpoints.check_fits(manager, 7, config, mesh)
        with pytest.raises(CheckpointError, match="checkpoint .*, configuration .*16"):
            checkpoints.check_fits(manager, 7, wider, mesh)


def test_a_checkpoint_written_today_has_the_same_items_and_handlers_as_the_stored_one(directory, tmp_path):
    """So that earlier versions of clipjax read it too."""
    config = small()
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    with checkpoints.open_read_only(directory) as manager:
        state = checkpoints.restore(manager, 7, config, mesh)
        then = manager.metadata(7).item_handlers
    with checkpoints.open_checkpoints(tmp_path / "today", config.checkpoint) as manager:
        checkpoints.save(manager, state, data_state={"batch": 7}, config=config, fingerprint={})
    with checkpoints.open_read_only(tmp_path / "today" / "checkpoints") as manager:
        assert manager.metadata(7).item_handlers == then
