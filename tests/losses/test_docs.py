"""The loss that docs/losses.md shows is exact on eight devices, with its own option."""

import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from clipjax.config import MeshConfig
from clipjax.mesh import batch_sharding, make_mesh

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"


@pytest.mark.parametrize("comm", ["all_gather", "ring"])
def test_the_documented_loss_and_its_gradient_equal_float64(comm, monkeypatch):
    code = "".join(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL))
    module = types.ModuleType("hinge")
    monkeypatch.setitem(sys.modules, "hinge", module)  # dataclasses look up their module
    exec(code, module.__dict__)
    mesh = make_mesh(MeshConfig(4, 2, 1))
    rng = np.random.default_rng(0)
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in rng.normal(size=(2, 64, 24)))
    loss_fn = module.make_hinge_loss(module.HingeConfig(comm=comm, tile=4, margin=2.0), mesh)
    loss = lambda x, y: loss_fn(x, y, logit_scale=4.0, logit_bias=-0.5)[0]  # noqa: E731
    found = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        *jax.device_put((x.astype(np.float32), y.astype(np.float32)), batch_sharding(mesh))
    )
    z = 2 * np.eye(64) - 1
    hinge = np.maximum(2 - z * (4 * x @ y.T - 0.5), 0)
    d = -2 * hinge * z * 4 / 64
    expected = np.sum(hinge**2) / 64, (d @ y, d.T @ x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=5e-6 * np.abs(b).max())
