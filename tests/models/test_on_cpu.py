"""Gradients as XLA:CPU multiplies them: bfloat16 stays bfloat16, values are those of float64, on meshes as well."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.config import MeshConfig
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models.attention import attention
from clipjax.models.layers import add_bias, dot, dots
from clipjax.models.on_cpu import sum_of_products
from clipjax.planning.hlo import collectives, parse
from clipjax.training.state import abstract_state
from clipjax.training.step import lower_step
from tests.tiny import start, tiny_batches, tiny_config

WIDTH = 64


def normal(seed, *shape, dtype=jnp.bfloat16):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def operands(text, scope=""):
    """[(type of the left side, of the right side, whether the left is summed along its last axis)] of all products.

    Those are the products as they run, after the compiler's conversions. scope: what a product's JAX path must match.
    """
    program, found = parse(text), []
    for instructions in program.computations.values():
        defined = {instruction.name: instruction for instruction in instructions}
        for product in (i for i in instructions if i.opcode == "dot" and re.search(scope, i.op_name)):
            names = re.findall(r"%([\w.\-]+)", product.text[: product.text.index(")")])
            sides = [defined[name] for name in names]
            types, ranks = zip(*(((side.shapes[0][0]), len(side.shapes[0][1])) for side in sides), strict=True)
            last = re.search(r"lhs_contracting_dims=\{(\d+)\}", product.text).group(1) == str(ranks[0] - 1)
            found.append((*types, last))
    return found


def largest_moved(text):
    """The bytes of the largest array that a collective of a program for eight devices moves."""
    return max((max(c.bytes_in, c.bytes_out) for c in collectives(parse(text), 8)), default=0)


def compiled(function, *arguments, **shardings):
    return jax.jit(function, **shardings).lower(*arguments).compile().as_text()


def gradients_of_dot(x, kernel, bias, g):
    return jax.vjp(lambda x, kernel, bias: add_bias(dot(x, kernel, x.dtype), bias), x, kernel, bias)[1](g)


@pytest.mark.parametrize("outputs", [(WIDTH,), (3, WIDTH)])
def test_no_operand_of_a_bfloat16_gradient_is_converted_to_float32(outputs):
    x, g = normal(0, 128, WIDTH), normal(1, 128, *outputs)
    kernel, bias = normal(2, WIDTH, *outputs, dtype=jnp.float32), normal(3, *outputs, dtype=jnp.float32)
    text = compiled(gradients_of_dot, x, kernel, bias, g)
    assert set(operands(text)) == {("bf16", "bf16", True)}
    _, dkernel, dbias = jax.jit(gradients_of_dot)(x, kernel, bias, g)
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    np.testing.assert_allclose(dkernel, np.tensordot(x, g, (0, 0)), atol=1e-4)
    np.testing.assert_allclose(dbias, g.sum(0), atol=1e-4)


def test_the_compiler_converts_the_operands_of_a_gradient_that_is_not_written_out():
    """It shows that the search finds such products. If a newer jaxlib fails here, on_cpu may no longer be needed."""
    x, g = normal(0, 128, WIDTH), normal(1, 128, WIDTH)
    text = compiled(lambda x, g: jnp.einsum("na,nb->ab", x, g, preferred_element_type=jnp.float32), x, g)
    assert set(operands(text)) == {("f32", "f32", False)}


@pytest.mark.parametrize("causal", [False, True])
def test_no_operand_of_attention_in_bfloat16_is_converted_to_float32(causal):
    q, k, v, g = (normal(i, 4, 24, 4, 16) for i in range(4))

    def gradients(q, k, v, g):
        return jax.vjp(functools.partial(attention, causal=causal), q, k, v)[1](g)

    assert set(operands(compiled(gradients, q, k, v, g))) == {("bf16", "bf16", True)}
    exact = gradients(*(a.astype(jnp.float32) for a in (q, k, v, g)))
    for found, expected in zip(jax.jit(gradients)(q, k, v, g), exact, strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02 * np.abs(expected).max())


def test_the_two_sides_of_a_gradient_may_be_mapped_or_run_without_jit():
    x, g = normal(0, 3, 32, WIDTH), normal(1, 3, 32, 16)
    expected = np.einsum("bna,bno->bao", *(np.asarray(a, np.float64) for a in (x, g)))
    np.testing.assert_allclose(jax.jit(jax.vmap(sum_of_products))(x, g), expected, atol=1e-4)
    np.testing.assert_allclose(
        jax.vmap(sum_of_products, (1, 1))(x.swapaxes(0, 1), g.swapaxes(0, 1)), expected, atol=1e-4
    )
    np.testing.assert_allclose(sum_of_products(x[0], g[0]), expected[0], atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_a_sharded_bfloat16_gradient_stays_bfloat16_and_moves_nothing_but_its_sum(shape):
    """Rows over data and fsdp, kernel over fsdp and tensor, under jit; rows alone inside shard_map."""
    mesh = make_mesh(MeshConfig(*shape))
    x, kernel, g = normal(0, 512, WIDTH), normal(1, WIDTH, 2 * WIDTH, dtype=jnp.float32), normal(2, 512, 2 * WIDTH)
    rows, columns = P(("data", "fsdp")), P(("data", "fsdp"), "tensor")
    shardings = [NamedSharding(mesh, spec) for spec in (rows, P("fsdp", "tensor"), columns)]

    def gradients(x, kernel, g):
        return jax.vjp(lambda x, kernel: dot(x, kernel, x.dtype), x, kernel)[1](g)

    text = compiled(gradients, x, kernel, g, in_shardings=shardings, out_shardings=(shardings[0], shardings[1]))
    assert set(operands(text)) == {("bf16", "bf16", True)}
    assert largest_moved(text) <= 4 * kernel.size < x.nbytes, "matrices and their gradients, no activations"
    found = jax.jit(gradients, in_shardings=shardings)(x, kernel, g)[1]
    expected = np.asarray(x, np.float64).T @ np.asarray(g, np.float64)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    def local(x, g):
        return jax.lax.psum(sum_of_products(x, g), ("data", "fsdp"))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=P())
    assert set(operands(compiled(mapped, x, g))) == {("bf16", "bf16", True)}
    np.testing.assert_allclose(jax.jit(mapped)(x, g), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gradients_of_attention_stay_on_their_device(dtype):
    """Examples over data and fsdp, heads over tensor."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    sharding = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    q, k, v, g = (normal(i, 8, 24, 4, 16, dtype=dtype) for i in range(4))

    def gradients(q, k, v, g):
        return jax.vjp(attention, q, k, v)[1](g)

    assert largest_moved(compiled(gradients, q, k, v, g, in_shardings=sharding, out_shardings=sharding)) == 0
    found = jax.jit(gradients, in_shardings=sharding)(q, k, v, g)
    for a, b in zip(found, jax.jit(gradients)(q, k, v, g), strict=True):
        atol = 2 ** (-8 if dtype == jnp.bfloat16 else -20) * np.abs(b).max()
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=atol)


def test_gradients_of_gradients_are_those_of_plain_products():
    x, g = normal(0, 16, 8), normal(1, 16, 4)

    def slope(product):
        return jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(product(x, g) ** 3))(x) ** 2))(x)

    plain = slope(lambda x, g: jnp.einsum("na,nb->ab", x, g, preferred_element_type=jnp.float32))
    np.testing.assert_array_equal(slope(sum_of_products), plain)


def test_several_maps_of_one_input_have_bfloat16_gradients():
    x, kernel = normal(0, 64, WIDTH), normal(1, WIDTH, 3, 32, dtype=jnp.float32)
    gs = tuple(normal(i, 64, 32) for i in (2, 3, 4))

    def gradients(x, kernel, gs):
        return jax.vjp(lambda x, kernel: dots(x, kernel, x.dtype), x, kernel)[1](gs)

    assert set(operands(compiled(gradients, x, kernel, gs))) == {("bf16", "bf16", True)}
    expected = np.einsum("na,kno->ako", *(np.asarray(a, np.float64) for a in (x, jnp.stack(gs))))
    np.testing.assert_allclose(jax.jit(gradients)(x, kernel, gs)[1], expected, atol=1e-4)


@functools.cache
def compiled_step():
    """Of SigLIP in bfloat16 on one device: image tower scanned and pooled by attention, text tower unrolled."""
    config = tiny_config((1, 1, 1))
    config = replace(config, model=replace(config.model, dtype="bfloat16"))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    return lower_step(config, mesh, abstract_state(config, mesh), None).compile().as_text()


def test_all_products_of_a_bfloat16_step_but_the_loss_are_bfloat16():
    found = operands(compiled_step(), r"DualEncoder")
    assert len(found) > 40 and set(found) == {("bf16", "bf16", True)}
    assert set(operands(compiled_step(), r"[/(]loss[/)]")) <= {("f32", "f32", True), ("f32", "f32", False)}


def test_the_step_overwrites_its_state_without_copying_it():
    assert re.search(r" = f32\[\d\S* (?:copy|fusion)\(", compiled_step())
    assert not re.search(r" = f32\[\d\S* copy\(%state_(?:params|opt_state)", compiled_step()), "only scalars"


def test_heads_that_the_tensor_axis_does_not_divide_are_not_split():
    found = {}
    for mesh, count in (((1, 1, 1), 1), ((1, 1, 4), 4)):
        config = tiny_config(mesh, loss="softmax")
        image = replace(config.model.image, pool="attentional", pooler_queries=4, pooler_heads=2)
        config = replace(config, model=replace(config.model, image=image))
        mesh, state, step = start(config, count)
        state, metrics = step(state, jax.device_put(tiny_batches(1)[0], batch_sharding(mesh)))
        found[count] = [float(metrics[name]) for name in ("loss", "grad_norm", "update_norm")]
    np.testing.assert_allclose(found[4], found[1], rtol=2e-6)
