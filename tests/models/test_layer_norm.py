"""LayerNorm's forms for each platform against float64, on the processor; and what a GPU's is lowered to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.models.layer_norm import layer_norm

WIDTH, EPS = 64, 1e-5


def arguments(shape, dtype, mean=1.0):
    keys = jax.random.split(jax.random.key(0), 4)
    x, dy = (jax.random.normal(key, shape) for key in keys[:2])
    scale, bias = (jax.random.normal(key, (WIDTH,)) for key in keys[2:])
    return (3 * x + mean).astype(dtype), scale, bias, dy.astype(dtype)


def value_and_gradients(x, scale, bias, dy):
    y, pull = jax.vjp(functools.partial(layer_norm, eps=EPS), x, scale, bias)
    return y, *pull(dy)


def in_float64(*arrays):
    x, scale, bias, dy = (np.asarray(a, np.float64) for a in arrays)
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPS)
    normalised, g = centred / deviation, dy * scale
    along = (g * normalised).mean(-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    dx = (g - g.mean(-1, keepdims=True) - normalised * along) / deviation
    return normalised * scale + bias, dx, (dy * normalised).sum(rows), dy.sum(rows)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "default"])
@pytest.mark.parametrize("mean", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [(48, WIDTH), (4, 12, WIDTH)])
def test_values_and_gradients_are_those_of_float64(shape, dtype, mean, platform, monkeypatch):
    def take(*args, default, **branches):
        return branches.get(platform, default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", take)
    given = arguments(shape, dtype, mean)
    rounding = max(float(jnp.finfo(dtype).eps), 1e-5)
    found = jax.jit(lambda *args: value_and_gradients(*args))(*given)  # a function that was not traced before
    # The difference of squares loses mean^2 / variance of float32's last bits.
    sums = 1e-5 if mean == 1.0 or dtype == jnp.float32 else 2e-4
    for result, exact, tolerance in zip(found, in_float64(*given), (rounding, rounding, sums, 1e-5), strict=True):
        np.testing.assert_allclose(
            np.asarray(result, np.float64), exact, atol=tolerance * max(1.0, np.abs(exact).max())
        )


def test_an_example_of_zeros_has_finite_gradients_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, cuda=None, **_: (cuda or default)(*args))
    x, scale, bias, dy = arguments((2, WIDTH), jnp.bfloat16)
    y, dx, dscale, _ = value_and_gradients(x.at[1].set(0), scale, bias, dy.at[1].set(0))
    assert jnp.array_equal(y[1], bias.astype(y.dtype)) and not dx[1].any() and jnp.isfinite(dscale).all()


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_a_nearly_constant_row_has_a_bounded_gradient_on_a_gpu(eps, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, cuda=None, **_: (cuda or default)(*args))
    row = jnp.full((1, 768), 256.0, jnp.bfloat16).at[0, 0].set(258.0)
    dy, scale = jax.random.normal(jax.random.key(0), row.shape).astype(row.dtype), jnp.ones(768)
    dx, dscale, _ = jax.vjp(functools.partial(layer_norm, eps=eps), row, scale, scale)[1](dy)
    # In float64, dx is at most 46.
    assert jnp.isfinite(dscale).all() and np.abs(np.asarray(dx, np.float64)).max() < 100


@pytest.mark.parametrize(("platform", "barriers"), [("cuda", 1), ("tpu", 0), ("cpu", 0)])
def test_the_backward_pass_for_a_gpu_computes_the_statistics_again(platform, barriers):
    for dtype in (jnp.bfloat16, jnp.float32):
        traced = jax.jit(value_and_gradients).trace(*arguments((8, WIDTH), dtype))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("optimization_barrier") == (barriers if dtype == jnp.bfloat16 else 0)
