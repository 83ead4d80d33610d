"""Attention in cuDNN's kernels: padding and masks against plain attention, calls in the program lowered for GPUs.

No GPU is needed. JAX's own implementation stands in for the kernel where numbers are compared: it takes the same
arguments.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax import jax_private
from clipjax.config import MeshConfig
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import cudnn_attention as cudnn
from clipjax.models.attention import CrossAttention, SelfAttention, _divides, attention, fused_by
from clipjax.models.rotary import rotary_1d
from clipjax.models.towers.vit import PatchTowerConfig
from clipjax.models.transformer import REMAT_POLICIES, transformer
from tests.models.plain_attention import reference

LENGTHS, HOLES = "lengths", "holes"
# length, keys, heads, d, causal, mask
CASES = {
    "an even length": (6, 6, 2, 8, False, None),
    "an odd length": (7, 7, 2, 8, False, None),
    "an odd length, causal": (7, 7, 2, 8, True, None),
    "lengths of an odd length": (7, 7, 2, 8, False, LENGTHS),
    "a mask with holes": (7, 7, 2, 8, False, HOLES),
    "a mask with holes, causal": (6, 6, 2, 8, True, HOLES),
    "other keys than queries": (3, 7, 2, 8, False, None),
    "other keys, masked": (3, 6, 2, 8, False, HOLES),
}


def arrays(length, keys, heads, d, dtype=jnp.float32, batch=4):
    shapes = [(batch, n, heads, d) for n in (length, keys, keys, length)]
    return [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)]


def make_mask(kind, keys):
    """Of four examples: some of the keys, all of them, the first only, none."""
    if kind == LENGTHS:
        return jnp.asarray([keys - 2, keys, 1, 0], jnp.int32)
    some = np.arange(keys) % 3 != 1
    first = np.arange(keys) == 0
    return None if kind is None else jnp.asarray(np.stack([some, some | True, first, some & False]))


def value_and_gradients(attend, g, **options):
    return jax.jit(lambda q, k, v: (attend(q, k, v), *jax.vjp(attend, q, k, v)[1](g)), **options)


def stand_in(**options):
    return functools.partial(cudnn.cudnn_attention, implementation="xla", **options)


def as_bools(mask, keys):
    return mask if mask is None or mask.ndim == 2 else np.arange(keys) < np.where(mask > 0, mask, keys)[:, None]


@pytest.mark.parametrize("name", CASES)
def test_padding_and_masks_leave_attention_and_its_gradient_as_they_are(name):
    length, keys, heads, d, causal, kind = CASES[name]
    mask = make_mask(kind, keys)
    if causal and kind:  # without any keys, plain attention sees those to come, too; no tower has such examples
        mask = mask.at[3, 0].set(True)
    q, k, v, g = arrays(length, keys, heads, d)
    if kind == HOLES:  # to keys that are all masked, plain attention has no gradient, and nobody wants one
        g = g.at[3].set(0)
    expected = reference(q, k, v, g, causal, as_bools(mask, keys))
    found = value_and_gradients(stand_in(mask=mask, causal=causal), g)(q, k, v)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)
    np.testing.assert_allclose(attention(q, k, v, causal=causal, mask=mask), expected[0], atol=3e-6)


def test_in_bfloat16_it_is_attention_within_rounding():
    q, k, v, g = arrays(7, 7, 2, 8, jnp.bfloat16)
    found = value_and_gradients(stand_in(), g)(q, k, v)
    for ours, theirs in zip(found, reference(q, k, v, g, False), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=2**-7 * np.abs(theirs).max())


def test_rows_of_padding_change_nothing_and_get_no_gradient():
    """Whatever is in them."""
    q, k, v, g = (a.at[:, 5:].set(1e4) for a in arrays(6, 6, 2, 8))
    g = g.at[:, 5:].set(0)
    found = value_and_gradients(stand_in(keys=5), g)(q, k, v)
    for ours, theirs in zip(found, reference(*(a[:, :5] for a in (q, k, v, g)), False), strict=True):
        np.testing.assert_allclose(ours[:, :5], theirs, atol=3e-6)
    for gradient in found[1:]:
        assert not np.any(gradient[:, 5:])


@pytest.mark.parametrize("kind", [None, LENGTHS, HOLES])
def test_every_device_attends_to_its_own_examples_and_heads(kind):
    mesh = make_mesh(MeshConfig(2, 1, 2), jax.devices()[:4])
    sharding = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    q, k, v, g = arrays(7, 7, 4, 8)
    g, mask = g.at[3].set(0), make_mask(kind, 7)
    step = value_and_gradients(
        stand_in(mask=mask, sharding=batch_sharding(mesh)), g, in_shardings=(sharding,) * 3, out_shardings=sharding
    )
    for ours, theirs in zip(step(q, k, v), reference(q, k, v, g, False, as_bools(mask, 7)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)
    assert "all-gather" not in step.lower(q, k, v).compile().as_text()


@pytest.fixture
def gpus(monkeypatch):
    """Programs are traced as for H100s, with cuDNN installed."""
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 90800)
    monkeypatch.setattr(jax_private.cudnn_calls(), "cuda_versions", versions)
    monkeypatch.setattr(cudnn, "_usable", cudnn._usable.__wrapped__)
    monkeypatch.setattr("clipjax.models.attention.fused_by", functools.partial(on_a_gpu, "9.0"))


def test_heads_and_examples_that_a_mesh_does_not_divide_are_plain():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    for shape in [(4, 16, 4, 64), (8, 16, 4, 64)]:
        assert _divides(jax.ShapeDtypeStruct(shape, jnp.bfloat16), batch_sharding(mesh))
    for shape in [(6, 16, 4, 64), (4, 16, 3, 64)]:
        assert not _divides(jax.ShapeDtypeStruct(shape, jnp.bfloat16), batch_sharding(mesh))


def on_a_gpu(capability, kind, q, k, sharding):
    client = types.SimpleNamespace(platform_version="cuda 12090")
    card = types.SimpleNamespace(platform="gpu", device_kind="a card", client=client, compute_capability=capability)
    mesh = types.SimpleNamespace(devices=np.array([card]), shape={"tensor": 1}, size=1)
    return fused_by(kind, q, k, types.SimpleNamespace(mesh=mesh))


def test_cross_attention_calls_cudnn_too(gpus):
    zeros = jax.nn.initializers.zeros
    module = CrossAttention(2, zeros, zeros, jnp.bfloat16)
    x, context = jnp.ones((4, 3, 32), jnp.bfloat16), jnp.ones((4, 5, 48), jnp.bfloat16)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, context)
    step = jax.jit(jax.grad(lambda v, x, context: module.apply(v, x, context).astype(jnp.float32).sum()))
    assert calls(step.trace(variables, x, context).lower(lowering_platforms=("cuda",)).as_text()) == (1, 1)


def lowered(length, *, dtype=jnp.bfloat16, mask=None, policy=None, width=32, heads=2, **options):
    zeros = jax.nn.initializers.zeros
    module = SelfAttention(heads, options.pop("causal", False), zeros, zeros, zeros, dtype, **options)
    x = jnp.ones((4, length, width), dtype)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    loss = lambda variables, x: module.apply(variables, x, mask=mask).astype(jnp.float32).sum()  # noqa: E731
    loss = loss if policy is None else jax.checkpoint(loss, policy=policy)
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return step.trace(variables, x).lower(lowering_platforms=("cuda",)).as_text()


def calls(text):
    """(forward, backward) calls of cuDNN's attention."""
    every = text.count("@__cudnn$fmha")
    backward = sum(text.count(f"Softmax{name}Backward(") for name in ("", "Dropout"))
    return every - backward, backward


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("an even length", dict(length=16)),
        ("a class token", dict(length=17)),
        ("a causal text", dict(length=7, causal=True)),
        ("a budget of patches", dict(length=16, mask=jnp.asarray([16, 9, 4, 1]))),
        ("padded texts", dict(length=7, mask=np.arange(7) < np.array([[7], [3], [2], [1]]))),
        ("heads of 72", dict(length=27, width=144)),
        ("heads of 128", dict(length=16, width=256)),
        ("attention that recomputes by itself", dict(length=16, remat=True, chunk=2)),
        ("flash, as in older configs", dict(length=16, kind="flash")),
    ],
)
def test_the_program_for_a_gpu_calls_cudnn_once_forward_and_once_backward(gpus, what, options):
    text = lowered(**options)
    assert calls(text) == (1, 1)
    assert "exponential" not in text  # no softmax of our own


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("float32", dict(dtype=jnp.float32)),
        ("heads of 20", dict(width=40)),
        ("heads of 160", dict(width=320)),
        ("dense", dict(kind="dense")),
    ],
)
def test_what_cudnn_does_not_take_is_plain(gpus, what, options):
    assert calls(lowered(16, **options)) == (0, 0)


def test_a_block_that_keeps_products_does_not_run_the_kernel_again(gpus):
    assert calls(lowered(17, policy=REMAT_POLICIES["dots"])) == (1, 1)
    assert calls(lowered(17, policy=REMAT_POLICIES["full"])) == (2, 1)


@pytest.mark.parametrize(("capability", "version"), [("7.5", lambda: 90800), ("9.0", None)])
def test_an_old_gpu_or_one_without_cudnn_gets_plain_attention_and_one_warning(
    gpus, capability, version, monkeypatch, caplog
):
    if version is None:
        monkeypatch.setattr(jax_private.cudnn_calls(), "cuda_versions", None)
    monkeypatch.setattr(cudnn, "_usable", functools.cache(cudnn._usable))
    monkeypatch.setattr("clipjax.models.attention.fused_by", functools.partial(on_a_gpu, capability))
    for _ in range(2):
        assert calls(lowered(16)) == (0, 0)
    [message] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "without fused kernels on this GPU (a card)" in message and ("7.5" in message or "cuDNN" in message)


def test_a_processor_trains_with_plain_attention():
    heads = jax.ShapeDtypeStruct((4, 16, 2, 64), jnp.bfloat16)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    assert fused_by("auto", heads, heads, batch_sharding(mesh)) == fused_by("auto", heads, heads, None) == ""


def test_on_a_processor_every_choice_of_attention_is_the_same_function():
    x = jax.random.normal(jax.random.key(1), (2, 7, 16))
    found = {}
    for kind in ("auto", "dense", "flash"):
        normal = jax.nn.initializers.normal()
        module = SelfAttention(2, False, normal, normal, normal, jnp.float32, kind=kind)
        variables = module.init(jax.random.key(0), x)
        found[kind] = jax.jit(jax.value_and_grad(lambda v, m=module: jnp.square(m.apply(v, x)).sum()))(variables)
    for kind in ("dense", "flash"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), found["auto"], found[kind])


class Tower(nn.Module):
    """A stack of blocks alone."""

    config: PatchTowerConfig
    causal: bool
    hidden_layers: tuple[int, ...] = (1, -1)

    @nn.compact
    def __call__(self, x, rotation=None, mask=None):
        options = dict(causal=self.causal, train=False, rotation=rotation, mask=mask, hidden_layers=self.hidden_layers)
        return transformer(x, self.config, dtype=x.dtype, activations=None, **options)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    ("causal", "turned", "mask"),
    [(False, False, None), (True, False, None), (False, True, None), (False, False, LENGTHS), (False, False, HOLES)],
)
def test_a_tower_of_odd_length_is_padded_once_and_computes_the_same(causal, turned, mask, scan_layers, monkeypatch):
    shape = dict(width=16, depth=3, num_heads=2, mlp_dim=32, scan_layers=scan_layers)
    module, x = Tower(PatchTowerConfig(**shape), causal), jax.random.normal(jax.random.key(1), (4, 7, 16))
    rotation = rotary_1d(7, 8, 100.0) if turned else None
    mask = make_mask(mask, 7)
    if mask is not None and mask.ndim == 2:
        mask = mask.at[3].set(mask[0])  # where no key is seen, cuDNN's gradients are those of equal weights
    variables = module.init(jax.random.key(0), x, rotation, mask)

    def loss(variables, x):
        y, states = module.apply(variables, x, rotation, mask)
        weights = 1.0 + jnp.arange(y.size).reshape(y.shape) / y.size
        return sum(jnp.square(a * weights).sum() for a in (y, *states)), (y, states)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    expected = step(variables, x)
    lengths, attend = [], stand_in()

    def kernel(q, k, v, mask=None, **options):
        lengths.append((q.shape[1], options["keys"]))
        return attend(q, k, v, mask, **options)

    monkeypatch.setattr("clipjax.models.attention.fused_by", lambda *args: "cudnn")
    monkeypatch.setattr(cudnn, "cudnn_attention", kernel)
    found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)
    assert set(lengths) == {(8, 7)}, "of q, k and v, before the kernel is called"
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-6 * np.abs(theirs).max())
