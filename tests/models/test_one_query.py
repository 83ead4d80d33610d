"""Attention of one query without keys and values, beside one with both, in float64 NumPy and as it was written out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax.config import MeshConfig
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models.attention import attention
from clipjax.models.layers import Linear
from clipjax.models.one_query import attend_once, mixed_rows
from clipjax.models.pooling import ProbeAttention
from tests.models.test_gpu_forms import lowered

BATCH, LENGTH, HEADS, D = 3, 7, 4, 6
WIDTH = HEADS * D


def operands(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    q, x = normal(BATCH, HEADS, D), normal(BATCH, LENGTH, WIDTH)
    key, value = (normal(WIDTH, HEADS, D) * WIDTH**-0.5 for _ in range(2))
    return q, x, key, value


def with_keys_and_values(q, x, key, value, key_bias, seen):
    """In the precision of the operands."""
    k, v = np.einsum("blw,whd->blhd", x, key) + key_bias, np.einsum("blw,whd->blhd", x, value)
    logits = np.einsum("bhd,blhd->bhl", q, k) / np.sqrt(D)
    logits = np.where(seen[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhl,blhd->bhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("masked", [False, True])
def test_the_result_is_that_of_keys_and_values_in_float64_and_a_bias_of_the_keys_changes_nothing(masked):
    seen = np.arange(LENGTH) < (np.array([[7], [4], [1]]) if masked else LENGTH)
    seen = np.broadcast_to(seen, (BATCH, LENGTH))
    arrays = operands()
    bias = np.random.default_rng(1).normal(size=(HEADS, D))
    expected = with_keys_and_values(*(a.astype(np.float64) for a in arrays), bias, seen)
    found = attend_once(*arrays, jnp.asarray(seen) if masked else None, jnp.float32)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def plain(q, x, key, value, dtype):
    flat = lambda kernel: jnp.einsum("blw,whd->blhd", x, kernel).astype(dtype)  # noqa: E731
    return attention(q[:, None].astype(dtype), flat(key), flat(value))[:, 0]


def test_gradients_are_those_of_keys_and_values():
    arrays = operands()
    loss = lambda f: lambda *args: jnp.sin(2 * f(*args)).sum()  # noqa: E731
    ours = jax.grad(loss(lambda *args: attend_once(*args, None, jnp.float32)), (0, 1, 2, 3))(*arrays)
    theirs = jax.grad(loss(lambda *args: plain(*args, jnp.float32)), (0, 1, 2, 3))(*arrays)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * max(1.0, float(jnp.abs(b).max())))


def test_in_bfloat16_one_more_number_is_rounded_and_gradients_of_matrices_are_not():
    """What the rows are mixed to; the values' own rounding is averaged over the rows. Over 30 seeds."""
    errors = {attend_once: [], plain: []}
    for seed in range(30):
        arrays = operands(seed)
        exact = attend_once(*arrays, None, jnp.float32)
        for f in errors:
            last = (None, jnp.bfloat16) if f is attend_once else (jnp.bfloat16,)
            errors[f].append(float(jnp.square(f(*arrays, *last).astype(jnp.float32) - exact).mean()))
    assert np.mean(errors[attend_once]) < 2 * np.mean(errors[plain])  # of squares; 1.7 here
    grads = jax.grad(lambda *args: jnp.sin(attend_once(*args, None, jnp.bfloat16).astype(jnp.float32)).sum(), (2, 3))(
        *arrays
    )
    for grad in grads:
        assert grad.dtype == jnp.float32
        assert (grad != grad.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9  # never rounded to bfloat16


class Reference(nn.Module):
    """big_vision's MAP head, until its MLP: keys and values of all rows, a query for every example."""

    num_heads: int

    @nn.compact
    def __call__(self, probe, x, mask=None):
        batch, _, width = x.shape
        make = lambda name, y: Linear(width, nn.initializers.zeros, name=name)(y)  # noqa: E731
        q = make("query", jnp.broadcast_to(probe, (batch, 1, width)))
        heads = (
            y.reshape(batch, -1, self.num_heads, width // self.num_heads) for y in (q, make("key", x), make("value", x))
        )
        return make("out", attention(*heads, mask=mask).reshape(batch, width))


@pytest.mark.parametrize("counts", [None, [7, 3, 1]])
def test_the_map_heads_attention_and_gradients_are_big_visions(counts):
    _, x, _, _ = operands()
    mask = None if counts is None else jnp.array(counts)
    probe = jax.random.normal(jax.random.key(0), (WIDTH,))
    ours, reference = ProbeAttention(HEADS, jnp.float32), Reference(HEADS)
    variables = ours.init(jax.random.key(1), probe, x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, reference.init(jax.random.key(1), probe, x))
    variables = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape), variables)

    def both(module):
        f = lambda variables, probe, x: jnp.sin(module.apply(variables, probe, x, mask)).sum()  # noqa: E731
        return module.apply(variables, probe, x, mask), jax.grad(f, (0, 1, 2))(variables, probe, x)

    found, expected = both(ours), both(reference)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * max(1.0, float(jnp.abs(b).max())))
    assert not found[1][0]["params"]["key"]["bias"].any()  # exactly zero, where the reference's is rounding


def gradients(wide, x, dy):
    return jax.vjp(lambda wide, x: mixed_rows(wide, x, jnp.ones((1, 1), bool)), wide, x)[1](dy)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_the_gradient_of_the_rows_is_one_product_in_each_platforms_form(platform):
    wide, x = jnp.ones((BATCH, HEADS, WIDTH), jnp.bfloat16), jnp.ones((BATCH, LENGTH, WIDTH), jnp.bfloat16)
    text = lowered(gradients, wide, x, wide, platform=platform)
    found = re.findall(r"dot_general.*-> tensor<([\dx]*)x(\w+)>", text)
    of_rows = [kind for shape, kind in found if shape == f"{BATCH}x{LENGTH}x{WIDTH}"]
    assert of_rows == ["bf16" if platform == "cuda" else "f32"]  # a GPU's library rounds as it writes
    # Only a CPU needs it. On a mesh, it is partitioned in a way that a TPU does not know.
    assert ("LayoutConstraint" in text) == (platform == "cpu")


def test_all_platforms_forms_give_the_same_gradients(monkeypatch):
    wide, x, dy = (
        jax.random.normal(jax.random.key(i), (BATCH, n, WIDTH)) for i, n in enumerate((HEADS, LENGTH, HEADS))
    )
    expected = gradients(wide, x, dy)
    for platform in ("cuda", "default"):
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *args, p=platform, **forms: forms.get(p, forms["default"])(*args)
        )
        for a, b in zip(gradients(wide, x, dy), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("heads", [4, 3], ids=["tensor divides them", "tensor does not"])
def test_on_a_mesh_a_map_heads_attention_has_the_gradients_of_one_device(heads):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    x, probe = jax.random.normal(jax.random.key(0), (8, LENGTH, 12)), jax.random.normal(jax.random.key(1), (12,))
    counts = jnp.array([7, 3, 1, 2, 7, 5, 4, 6])

    def gradients(module, variables, x):
        f = lambda variables, x: jnp.sin(module.apply(variables, probe, x, counts)).sum()  # noqa: E731
        return jax.jit(jax.grad(f, (0, 1)))(variables, x)

    single = ProbeAttention(heads, jnp.float32)
    variables = single.init(jax.random.key(2), probe, x)
    sharded = jax.device_put(x, batch_sharding(mesh))
    found = gradients(ProbeAttention(heads, jnp.float32, batch_sharding(mesh)), variables, sharded)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradients(single, variables, x)), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * max(1.0, float(jnp.abs(b).max())))
