"""The forms that products, biases and activations take on GPUs, read off the program lowered for one; no GPU needed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.models.activations import ACTIVATIONS, activate
from clipjax.models.layers import add_bias, dot

ROWS, WIDTH, OUT = 24, 16, 32


def lowered(function, *arguments, platform="cuda") -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def products(text: str) -> list[str]:
    """The element types of the results of all products."""
    return re.findall(r"dot_general.*-> tensor<[\dx]*x(\w+)>", text)


def linear_gradients(x, kernel, bias, dy):
    y, pull = jax.vjp(lambda x, kernel, bias: add_bias(dot(x, kernel, jnp.bfloat16), bias), x, kernel, bias)
    return y, *pull(dy)


def arguments(dtype):
    rng = np.random.default_rng(0)
    shapes = {"x": (ROWS, WIDTH), "kernel": (WIDTH, OUT), "bias": (OUT,), "dy": (ROWS, OUT)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return [jnp.asarray(a, dtype if name in ("x", "dy") else jnp.float32) for name, a in arrays.items()]


def test_on_a_gpu_only_the_gradient_of_the_matrix_leaves_a_product_in_float32():
    found = products(lowered(linear_gradients, *arguments(jnp.bfloat16)))
    assert sorted(found) == ["bf16", "bf16", "f32"]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_elsewhere_all_products_are_float32_and_a_bias_has_one_for_its_gradient(platform):
    found = products(lowered(linear_gradients, *arguments(jnp.bfloat16), platform=platform))
    assert found == ["f32"] * 4


def test_the_gradient_of_a_bias_on_a_gpu_is_summed_in_float32():
    text = lowered(lambda y, b, dy: jax.vjp(add_bias, y, b)[1](dy)[1], *(arguments(jnp.bfloat16)[i] for i in (3, 2, 3)))
    assert products(text) == [] and f"(tensor<{ROWS}x{OUT}xf32>, tensor<f32>) -> tensor<{OUT}xf32>" in text


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_an_activation_is_that_of_its_formula(name, dtype):
    x, _, _, _ = arguments(dtype)
    y, pull = jax.vjp(lambda x: activate(name, x), x)
    expected, expected_pull = jax.vjp(ACTIVATIONS[name], x)
    assert jnp.array_equal(y, expected) and jnp.array_equal(pull(x)[0], expected_pull(x)[0])


def test_the_backward_pass_of_an_activation_keeps_its_input_alone():
    x = jnp.ones((ROWS, WIDTH), jnp.bfloat16)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(lambda x: activate("gelu_tanh", x), x)[1], x))
    assert [leaf.shape for leaf in kept] == [x.shape]


def test_on_a_gpu_the_backward_pass_computes_the_tanh_again():
    x = jnp.ones((ROWS, WIDTH), jnp.bfloat16)

    def both(x):
        y, pull = jax.vjp(lambda x: activate("gelu_tanh", x), x)
        return y, pull(x)

    assert "optimization_barrier" in lowered(both, x)
    assert "optimization_barrier" not in lowered(both, x, platform="tpu")
