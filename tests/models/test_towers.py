"""Properties of the towers that parity with other code does not reach."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ConfigError
from clipjax.models import DualEncoder
from clipjax.models.pixels import normalize_pixels
from clipjax.models.position import sincos_2d
from clipjax.models.presets import get_preset
from clipjax.models.transformer import stack_layers, unstack_layers
from tests.tiny import tiny_batches, tiny_config

BATCH = tiny_batches(1)[0]
IMAGE = np.float32(BATCH["image"]) / 127.5 - 1
TEXT = BATCH["text"]


def tiny(image=None, text=None, **model):
    config = tiny_config().model
    return replace(config, image=replace(config.image, **image or {}), text=replace(config.text, **text or {}), **model)


def init(config, **inputs):
    inputs = {"image": IMAGE[:1], "text": TEXT[:1], **inputs}
    return jax.jit(lambda: DualEncoder(config).init(jax.random.key(0), **inputs)["params"])()


def embed(config, params, **inputs):
    return DualEncoder(config).apply({"params": params}, **inputs)


@pytest.mark.slow
def test_text_behind_the_first_eos_does_not_change_a_causal_tower():
    config = tiny(text=dict(causal=True, pool="eos", eos_id=1))
    text = np.where(TEXT == 1, 2, TEXT)
    text[:, 4] = 1
    other = text.copy()
    other[:, 5:] = 1
    params = init(config)
    a, b = (embed(config, params, text=t).text_embedding for t in (text, other))
    np.testing.assert_array_equal(a, b)
    # ... so that positions no caption reaches may be left out altogether.
    np.testing.assert_allclose(embed(config, params, text=text[:, :5]).text_embedding, a, atol=1e-6)
    changed = text.copy()
    changed[:, 3] = 9
    assert np.abs(embed(config, params, text=changed).text_embedding - a).max() > 1e-3


def test_a_bidirectional_tower_sees_every_position():
    config = tiny()
    params = init(config)
    changed = TEXT.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 64
    a, b = (embed(config, params, text=t).text_embedding for t in (TEXT, changed))
    assert (np.abs(a - b).max(axis=1) > 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_pooling_and_positions_shape_the_tree_as_documented(pool, position):
    config = tiny(image=dict(pool=pool, position=position))
    params = init(config)["image"]
    assert ("cls_token" in params) == (pool == "cls")
    assert ("map_head" in params) == (pool == "map")
    assert ("position_embedding" in params) == (position == "learned")
    out = embed(config, init(config), image=IMAGE)
    np.testing.assert_allclose(np.linalg.norm(out.image_embedding, axis=1), 1, atol=1e-6)
    assert out.text_embedding is None


def test_gap_without_positions_does_not_know_where_patches_are():
    config = tiny(image=dict(pool="gap"))
    params = init(config)
    params["image"]["position_embedding"] = jnp.zeros_like(params["image"]["position_embedding"])
    rolled = np.roll(IMAGE, 4, axis=1)  # by one patch
    a, b = (embed(config, params, image=i).image_embedding for i in (IMAGE, rolled))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_sincos_positions_equal_the_formula():
    found = sincos_2d(2, 3, 8)
    expected = []
    for y in range(2):
        for x in range(3):
            waves = [10_000.0**0, 10_000.0**-1]
            row = [np.sin(x * w) for w in waves] + [np.cos(x * w) for w in waves]
            expected.append(row + [np.sin(y * w) for w in waves] + [np.cos(y * w) for w in waves])
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.slow
def test_dropout_and_drop_path_act_in_training_only():
    config = tiny(image=dict(dropout=0.3, drop_path=0.3))
    params = init(config)
    plain = embed(tiny(), params, image=IMAGE).image_embedding
    np.testing.assert_array_equal(embed(config, params, image=IMAGE).image_embedding, plain)
    a, b = (
        DualEncoder(config).apply({"params": params}, image=IMAGE, train=True, rngs={"dropout": jax.random.key(k)})
        for k in (0, 1)
    )
    assert np.abs(a.image_embedding - b.image_embedding).max() > 1e-3


@pytest.mark.slow
def test_bfloat16_compute_stays_within_its_rounding_and_gives_float32():
    params = init(tiny())
    a = embed(tiny(), params, image=IMAGE, text=TEXT)
    b = embed(tiny(dtype="bfloat16"), params, image=IMAGE, text=TEXT)
    assert b.image_embedding.dtype == b.text_embedding.dtype == jnp.float32
    assert jax.tree.leaves(init(tiny(dtype="bfloat16")))[0].dtype == jnp.float32
    cosine = np.sum(a.image_embedding * b.image_embedding, axis=1)
    assert cosine.min() > 0.999


def test_stacking_layers_and_back_is_the_identity():
    tower = init(tiny(image=dict(scan_layers=False)))["image"]
    again = unstack_layers(stack_layers(tower))
    assert again.keys() == tower.keys()
    jax.tree.map(np.testing.assert_array_equal, again, tower)


def test_pixels_are_normalised_as_in_numpy():
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    found = normalize_pixels(jnp.asarray(BATCH["image"]), mean, std)
    np.testing.assert_allclose(found, (BATCH["image"] / 255.0 - mean) / std, atol=1e-6)


def test_an_unknown_preset_or_tower_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="'clip_vit_b23'. Did you mean 'clip_vit_b32'"):
        get_preset("clip_vit_b23")
    with pytest.raises(ConfigError, match="config.model.image.name='vitt' is unknown. Did you mean 'vit'"):
        init(tiny(image=dict(name="vitt")))
