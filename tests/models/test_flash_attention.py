"""Attention as one TPU kernel, interpreted, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.config import MeshConfig
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models.attention import attention
from clipjax.models.flash_attention import flash_attention, flash_backward, flash_forward, kernel_steps
from clipjax.models.layers import dots
from tests.models.plain_attention import reference

# batch, length, heads, d, causal; what a kernel step takes
CASES = {
    "whole tiles": ((2, 32, 2, 64, False), 1),
    "four examples share tiles": ((4, 20, 2, 64, False), 1),
    "sixteen odd ones share tiles": ((16, 3, 2, 64, False), 1),
    "two blocks of heads": ((4, 20, 4, 64, True), 2),
    "a batch without whole tiles": ((3, 20, 4, 32, False), 3),
    "without whole tiles, several blocks of heads a step": ((3, 20, 8, 64, False), 3),
    "all heads of 72": ((2, 16, 4, 72, False), 1),
    "two steps of heads of 96": ((2, 16, 8, 96, True), 2),
    "causal, tiles shared": ((8, 10, 1, 128, True), 1),
}


def arrays(batch, length, heads, d, dtype=jnp.float32):
    return [jax.random.normal(jax.random.key(i), (batch, length, heads, d)).astype(dtype) for i in range(4)]


def check_kernels(q, k, v, g, causal=False, mask=None, share=2e-6):
    """The kernels against float64, each result to within `share` of its largest number."""
    found = (
        flash_forward(q, k, v, mask, causal=causal, interpret=True),
        *flash_backward(q, k, v, g, mask, causal=causal, interpret=True),
    )
    for ours, theirs in zip(found, reference(q, k, v, g, causal, mask), strict=True):
        assert ours.dtype == q.dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=share * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_kernels_are_attention_and_its_gradient(name):
    (*shape, causal), steps = CASES[name]
    assert kernel_steps(*shape) == steps
    check_kernels(*arrays(*shape), causal)


# batch, length, heads, d, causal
MASKED = {
    "shared tiles": (4, 20, 2, 64, True),
    "arrays of their own": (3, 9, 2, 64, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_masked_keys_get_no_weight_and_no_gradient(name):
    """Whatever they hold; where no key is seen, all of the example's count the same."""
    *shape, causal = MASKED[name]
    q, k, v, g = arrays(*shape)
    some = np.arange(shape[1]) % 3 != 1
    mask = np.stack([some, np.arange(shape[1]) == 0, some & causal, some | True][: shape[0]])
    k, v = (jnp.where((mask | ~mask.any(1)[:, None])[:, :, None, None], a, 1e4) for a in (k, v))
    g = g.at[2].set(g[2] * causal)  # kernels have a gradient there, plain attention has none, and nobody wants one
    check_kernels(q, k, v, g, causal, mask)


@pytest.mark.slow
@pytest.mark.parametrize("length", [20, 16])
def test_two_heads_at_a_time_are_attention_where_more_do_not_fit(length, monkeypatch):
    """As So400m's heads of 72 channels at 729 tokens; each of the groups lies differently in its lanes."""
    monkeypatch.setattr("clipjax.models.flash_attention.MAX_WEIGHTS_BYTES", 0)
    shape = (2, length, 16, 24)
    assert kernel_steps(*shape) == 2 * 8
    mask = np.arange(length) < np.array([[length], [7]])
    check_kernels(*arrays(*shape), True)
    check_kernels(*arrays(*shape, jnp.bfloat16), False, mask, 2**-6)


def test_kernels_in_bfloat16_are_within_its_rounding():
    check_kernels(*arrays(4, 20, 2, 64, jnp.bfloat16), share=2**-7)


def test_an_example_is_blind_to_its_neighbours():
    """However large their numbers: windows overlap them."""
    q, k, v, g = (a.at[1].multiply(1e4) for a in arrays(4, 20, 2, 64))
    alone = [a[2:3] for a in (q, k, v, g)]
    found = flash_forward(q, k, v, interpret=True), *flash_backward(q, k, v, g, interpret=True)
    for ours, theirs in zip(found, reference(*alone, False), strict=True):
        np.testing.assert_allclose(ours[2:3], theirs, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("causal", [False, True])
def test_elsewhere_it_is_plain_attention_on_every_mesh(causal):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    sharding = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    q, k, v, g = arrays(8, 5, 4, 8)
    plain = lambda q, k, v: attention(q, k, v, causal=causal)  # noqa: E731
    flash = flash_attention(plain, causal=causal, sharding=batch_sharding(mesh))

    def value_and_grads(attend):
        return jax.jit(lambda *args: (attend(*args), *jax.vjp(attend, *args)[1](g)), in_shardings=(sharding,) * 3)

    for found, expected in zip(value_and_grads(flash)(q, k, v), value_and_grads(plain)(q, k, v), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda", "default"])
def test_one_gradient_for_several_products_is_that_of_each(platform, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **branches: branches[platform](*args))
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(40, 16), (16, 3, 24)]))
    gradients = tuple(jax.random.normal(jax.random.key(i), (40, 24)) for i in (2, 3, 4))
    ours, vjp = jax.vjp(lambda x, kernel: dots(x, kernel, jnp.float32), x, kernel)
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, np.stack(gradients)))
    expected = [*np.einsum("ni,ico->cno", x, kernel), np.einsum("cno,ico->ni", dy, kernel)]
    expected.append(np.einsum("ni,cno->ico", x, dy))
    for found, theirs in zip((*ours, *vjp(gradients)), expected, strict=True):
        np.testing.assert_allclose(found, theirs, atol=2e-6 * np.abs(theirs).max())
