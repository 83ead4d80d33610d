"""Patch dropout, the modern text tower and the new matrices' places on a mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipjax.config import ConfigError, MeshConfig
from clipjax.mesh import make_mesh, partition_spec
from clipjax.models import DualEncoder
from clipjax.models.rotary import rotary_1d, rotary_2d, rotate
from clipjax.models.towers.vit import drop_patches
from clipjax.planning.flops import step_flops
from clipjax.training.check import check
from tests.tiny import tiny_batches, tiny_config

BATCH = tiny_batches(1)[0]


def test_patch_dropout_keeps_the_prefix_draws_without_repeats_and_repeats_with_its_key():
    x = jnp.arange(3 * 17.0).reshape(3, 17, 1)
    table = jnp.arange(17.0)[:, None]
    kept, (cos, sin) = drop_patches(x, (table, -table), 0.5, jax.random.key(0), 1)
    again, _ = drop_patches(x, None, 0.5, jax.random.key(0), 1)
    np.testing.assert_array_equal(kept, again)
    assert kept.shape == (3, 9, 1)
    np.testing.assert_array_equal(kept[:, 0], x[:, 0])
    for row, image in zip(np.asarray(kept)[..., 0], np.asarray(x)[..., 0], strict=True):
        assert len(set(row.tolist())) == 9
        assert set(row.tolist()) <= set(image.tolist())
    # Every kept patch is turned by its own position.
    np.testing.assert_array_equal(cos, kept - x[:, :1])
    np.testing.assert_array_equal(sin, -cos)
    assert not np.array_equal(kept, drop_patches(x, None, 0.5, jax.random.key(1), 1)[0])


@pytest.mark.slow
def test_patch_dropout_acts_in_training_only_and_is_fewer_flops():
    config = tiny_config()
    model = replace(config.model, image=replace(config.model.image, patch_dropout=0.5))
    params = DualEncoder(model).init(jax.random.key(0), image=jnp.zeros((1, 16, 16, 3)))
    image = np.float32(BATCH["image"]) / 127.5 - 1
    plain = DualEncoder(config.model).apply(params, image=image).image_embedding
    np.testing.assert_array_equal(DualEncoder(model).apply(params, image=image).image_embedding, plain)
    dropped = DualEncoder(model).apply(params, image=image, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped.image_embedding - plain).max() > 1e-3
    half = step_flops(replace(config, model=model))["image attention"]
    assert half == pytest.approx(step_flops(config)["image attention"] / 4)


def test_rotary_scores_depend_on_distance_only():
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 16))
    q, k = jnp.broadcast_to(x[:, :, :1], (1, 9, 1, 16)), jnp.broadcast_to(x[:, :, 1:], (1, 9, 1, 16))
    turn = rotary_1d(9, 16, 10_000.0)
    scores = jnp.einsum("blhd,bmhd->lm", rotate(q, turn), rotate(k, turn))
    for offset in range(-8, 9):
        diagonal = np.diag(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    cos, sin = rotary_2d(2, 3, 16, 100.0, grid=6, prefix=1)
    assert cos.shape == (7, 16)
    np.testing.assert_array_equal(cos[0], 1)
    np.testing.assert_array_equal(sin[0], 0)
    np.testing.assert_allclose(sin[6, 0], np.sin(3.0), atol=1e-6)  # row 1 of 2 over a grid of 6
    np.testing.assert_allclose(sin[6, 8], np.sin(4.0), atol=1e-6)  # column 2 of 3
    with pytest.raises(ValueError, match="multiple of 4 channels, not 6"):
        rotary_2d(2, 2, 6, 100.0)


@pytest.mark.slow
def test_a_text_tower_of_rms_norms_rotary_positions_and_swiglu_equals_float64_numpy():
    config = tiny_config().model
    modern = dict(norm="rms", rope=True, position="none", mlp="swiglu", causal=True, qkv_bias="none", norm_eps=1e-6)
    config = replace(config, text=replace(config.text, **modern))
    text, c = BATCH["text"][:3], config.text
    params = DualEncoder(config).init(jax.random.key(0), text=text)["params"]
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    found = DualEncoder(config).apply({"params": params}, text=text).text_embedding
    p = jax.tree.map(np.float64, params["text"])

    def rms(x, q):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * q["scale"]

    def turn(x):  # complex numbers: another way to the same rotation
        z = x[..., ::2] + 1j * x[..., 1::2]
        bands = 10_000.0 ** -(np.arange(z.shape[-1]) / z.shape[-1])
        z = z * np.exp(1j * np.arange(x.shape[1])[:, None] * bands)[:, None, :]
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x = p["token_embedding"]["embedding"][text]
    b, block = len(text), p["block_0"]
    h = rms(x, block["ln_1"])
    q, k, v = (
        (h @ block["attention"]["qkv"]["kernel"][:, i]).reshape(b, c.context_length, c.num_heads, -1) for i in range(3)
    )
    scores = np.einsum("blhd,bmhd->bhlm", turn(q), turn(k)) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(c.context_length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    attended = np.einsum("bhlm,bmhd->blhd", weights, v).reshape(x.shape)
    x = x + attended @ block["attention"]["out"]["kernel"] + block["attention"]["out"]["bias"]
    h, mlp = rms(x, block["ln_2"]), block["mlp"]
    gate, up = (h @ mlp[name]["kernel"] + mlp[name]["bias"] for name in ("gate", "up"))
    x = x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down"]["kernel"] + mlp["down"]["bias"]
    x = rms(x, p["ln_final"])[:, -1] @ p["projection"]["kernel"] + p["projection"]["bias"]
    np.testing.assert_allclose(found, x / np.linalg.norm(x, axis=1, keepdims=True), atol=2e-6)


def test_new_matrices_are_cut_as_their_kin():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert partition_spec("image/blocks/mlp/gate/kernel", (12, 64, 256), mesh) == P(None, "fsdp", "tensor")
    assert partition_spec("image/block_0/attention/qkv/bias", (2, 64), mesh) == P(None, "tensor")
    assert partition_spec("image/pooler/attention/key/kernel", (64, 32), mesh) == P("fsdp", "tensor")
    assert partition_spec("decoder/cross_block_0/attention/out/kernel", (32, 32), mesh) == P("tensor", "fsdp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pool="attentional", pooler_heads=5), "multiple of pooler_heads=5"),
        (dict(pool="map", norm_after_pool=True), "goes with pool 'cls' or 'gap', not 'map'"),
        (dict(rope=True, width=24, projection=True), "multiple of 4 channels"),
        (dict(position="sincos", width=30, num_heads=2, projection=True), "multiple of 4, at least 8, not 30"),
        (dict(position="sincos", width=4, num_heads=1, projection=True), "multiple of 4, at least 8, not 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    config = tiny_config()
    config = replace(config, model=replace(config.model, image=replace(config.model.image, **options)))
    with pytest.raises(ConfigError, match=message):
        check(config, num_devices=8)
