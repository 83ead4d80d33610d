"""Value and gradient of every form equal float64 arithmetic, on any mesh and tile."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ConfigError, LossConfig, MeshConfig
from clipjax.losses import LOSSES, make_loss
from clipjax.mesh import batch_sharding, make_mesh
from tests.torch_reference import import_torch

BATCH, DIM = 64, 24
MESHES = {1: (1, 1, 1), 2: (2, 1, 1), 4: (1, 4, 1), 8: (4, 2, 1), "8 with tensor": (2, 2, 2)}


def embeddings(seed=0, batch=BATCH, noise=1.0):
    """Unit-length image and text embeddings; noise 0 makes them equal, 1 unrelated."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, DIM))
    y = (1 - noise) * x + noise * rng.normal(size=(batch, DIM))
    return tuple((a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32) for a in (x, y))


def reference(name, x, y, scale, bias):
    """(loss, dx, dy, dscale, dbias) in float64, derivatives written out by hand."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, cosine, eye = len(x), x @ y.T, np.eye(len(x))
    if name == "softmax":
        s = scale * cosine
        rows = s.max(1, keepdims=True) + np.log(np.exp(s - s.max(1, keepdims=True)).sum(1, keepdims=True))
        columns = s.max(0) + np.log(np.exp(s - s.max(0)).sum(0))
        loss = np.mean(0.5 * (rows[:, 0] + columns) - np.diag(s))
        ds, dbias = (np.exp(s - rows) + np.exp(s - columns) - 2 * eye) / (2 * n), 0.0
    else:
        s = scale * cosine + bias
        z = 2 * eye - 1
        loss = np.logaddexp(0, -z * s).sum() / n
        ds = -z / (1 + np.exp(z * s)) / n
        dbias = ds.sum()
    return loss, scale * ds @ y, scale * ds.T @ x, (ds * cosine).sum(), dbias


def value_and_grads(config, shape, x, y, scale, bias):
    size = int(np.prod(shape))
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[:size])
    loss_fn = make_loss(config, mesh)

    @jax.jit
    def run(x, y, scale, bias):
        def loss(*args):
            return loss_fn(args[0], args[1], logit_scale=args[2], logit_bias=args[3])[0]

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(x, y, scale, bias)

    x, y = jax.device_put((x, y), batch_sharding(mesh))
    loss, grads = run(x, y, jnp.float32(scale), jnp.float32(bias))
    return loss, *grads


def assert_close(found, expected, rtol):
    """Relative to the largest element of each: a gradient's zeros are not held to their own size."""
    for a, b in zip(found, expected, strict=True):
        assert np.abs(np.asarray(a, np.float64) - b).max() <= rtol * np.abs(b).max() + 1e-12


@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("comm", ["dense", "all_gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_float64_on_any_mesh(name, comm, devices):
    x, y = embeddings(noise=0.7)
    found = value_and_grads(LossConfig(name, comm), MESHES[devices], x, y, 4.0, -3.0)
    assert_close(found, reference(name, x, y, 4.0, -3.0), rtol=5e-6)


@pytest.mark.parametrize("tile", [1, 4, 8])
@pytest.mark.parametrize("comm", ["all_gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_change_no_number(name, comm, tile):
    x, y = embeddings(noise=0.7)
    found = value_and_grads(LossConfig(name, comm, tile), (8, 1, 1), x, y, 4.0, -3.0)
    assert_close(found, reference(name, x, y, 4.0, -3.0), rtol=5e-6)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("comm", ["all_gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_scale_100_neither_overflows_nor_underflows(name, comm, noise):
    """At scale 100 a bare exp overflows, and one shifted by the scale underflows when no pair is similar."""
    x, y = embeddings(noise=noise)
    y = -y if noise else y
    found = value_and_grads(LossConfig(name, comm, 4), (8, 1, 1), x, y, 100.0, -10.0)
    assert all(np.isfinite(np.asarray(a)).all() for a in found)
    # Logits of 100 carry float32 rounding of 4e-6 each into the exponent.
    expected = reference(name, x, y, 100.0, -10.0)
    assert float(found[0]) == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert_close(found[1:3], expected[1:3], rtol=5e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_open_clips(name):
    torch, open_clip_loss = import_torch(), import_torch("open_clip.loss")
    x, y = embeddings(noise=0.7)
    a, b = (torch.tensor(e, requires_grad=True) for e in (x, y))
    if name == "softmax":
        loss = open_clip_loss.ClipLoss()(a, b, torch.tensor(4.0))
    else:
        loss = open_clip_loss.SigLipLoss()(a, b, torch.tensor(4.0), torch.tensor(-3.0))
    loss.backward()
    found = value_and_grads(LossConfig(name), (8, 1, 1), x, y, 4.0, -3.0)
    assert_close(found[:3], (loss.item(), a.grad.numpy(), b.grad.numpy()), rtol=5e-6)


def compiled_text(config, batch=512):
    mesh = make_mesh(MeshConfig())
    loss_fn = make_loss(config, mesh)
    x, y = embeddings(batch=batch)

    def loss(x, y):
        return loss_fn(x, y, logit_scale=jnp.float32(10), logit_bias=jnp.float32(-10))[0]

    sharding = batch_sharding(mesh)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), in_shardings=(sharding, sharding), out_shardings=None)
    return step.lower(x, y).compile().as_text()


@pytest.mark.parametrize("comm", ["all_gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_no_buffer_is_as_large_as_the_similarities(name, comm):
    text = compiled_text(LossConfig(name, comm, tile=32))
    sizes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    largest = max(np.prod(size) for size in sizes)
    # The gathered embeddings, not a [64, 512] block of a device's similarities.
    assert (32, 32) in sizes
    assert largest <= 512 * DIM
    assert not any(sorted(size)[-2:] in ([64, 512], [512, 512]) for size in sizes if len(size) > 1)


def test_ring_and_gather_need_no_reduce_scatter_and_the_ring_no_gather():
    for name in LOSSES:
        gather, ring = compiled_text(LossConfig(name, "all_gather")), compiled_text(LossConfig(name, "ring"))
        assert "reduce-scatter" not in gather
        assert "collective-permute" not in gather
        assert "all-gather" not in ring
        assert "collective-permute" in ring


def test_bad_settings_are_refused_with_the_fields_name():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ConfigError, match="config.loss.name='sigmod'.*'sigmoid'"):
        make_loss(LossConfig("sigmod"), mesh)
    x, y = embeddings()
    with pytest.raises(ConfigError, match="config.loss.tile=3 does not divide the 8 rows"):
        make_loss(LossConfig(tile=3), mesh)(x, y, logit_scale=1.0, logit_bias=0.0)
    with pytest.raises(ConfigError, match="batch of 60 does not divide"):
        make_loss(LossConfig(), mesh)(x[:60], y[:60], logit_scale=1.0, logit_bias=0.0)
