"""The naflex tower in the train step, in accumulation, in a run with evaluation; what padding may not change."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.commands.eval import run as evaluate
from clipjax.commands.train import run as train
from clipjax.config import ConfigError, DecoderConfig, from_config_dict
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import DualEncoder
from clipjax.models.pixels import Patches
from clipjax.models.position import resample
from clipjax.models.towers.naflex import naflex_of
from clipjax.training.check import check
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.init_from import adapt
from clipjax.training.state import create_state
from clipjax.training.step import batch_shapes
from tests.runs import build_data, run_config
from tests.tiny import tiny_batches, tiny_config

COUNT, PATCH = 12, 4
IMAGE, TEXT = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 8), np.int32)
SHAPES = [(3, 4), (2, 5), (1, 12), (4, 1)]


def naflex_config(mesh=(-1, 1, 1), **changed):
    config = tiny_config(mesh)
    image = naflex_of(config.model.image, **{"max_patches": COUNT, **changed})
    return replace(config, model=replace(config.model, image=image))


def naflex_batch(config):
    (shape, dtype), (batch,) = batch_shapes(config)["image"], tiny_batches(1)
    image = np.random.default_rng(1).integers(0, 256, shape, dtype)
    shapes = np.resize(np.array(SHAPES, np.int32), (len(image), 2))
    return {"image": image, "spatial_shape": shapes, "text": batch["text"]}


def put(batch, mesh):
    return jax.device_put(batch, batch_sharding(mesh))


@pytest.fixture(scope="module")
def params():
    config = naflex_config()
    return jax.tree.map(np.asarray, create_state(config, make_mesh(config.mesh)).params)


@pytest.mark.parametrize("pool", ["map", "gap"])
def test_padding_changes_nothing(params, pool):
    model = naflex_config(pool=pool).model
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(4, COUNT, 3 * PATCH**2)).astype(np.float32)
    shapes = np.array([[2, 3], [3, 2], [1, 1], [2, 5]], np.int32)
    other = pixels.copy()
    for i, n in enumerate(shapes.prod(axis=1)):
        other[i, n:] = 1e3 * rng.normal(size=other[i, n:].shape)
    apply = jax.jit(DualEncoder(model).apply)
    embed = lambda *image: apply({"params": params}, image=Patches(*image)).image_embedding  # noqa: E731
    a = embed(pixels, shapes)
    np.testing.assert_array_equal(a, embed(other, shapes))
    np.testing.assert_allclose(a, embed(pixels[:, :10], shapes), atol=1e-6)  # a smaller budget that is enough
    assert np.abs(a - embed(pixels, shapes[:, ::-1])).max(axis=1)[[0, 1, 3]].min() > 1e-4  # 2 x 3 is not 3 x 2


def test_a_captioner_reads_no_padding():
    """Captions' likelihoods and all gradients, with padding of any content and of any length."""
    config = naflex_config()
    decoder = DecoderConfig(depth=1, width=config.model.text.width, num_heads=4, mlp_dim=64)
    text = replace(config.model.text, causal=True)
    model = DualEncoder(replace(config.model, text=text, decoder=decoder))
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(4, COUNT, 3 * PATCH**2)).astype(np.float32)
    shapes, ids = np.array([[2, 3], [3, 2], [1, 1], [2, 4]], np.int32), tiny_batches(1)[0]["text"][:4]
    other = np.concatenate([pixels[:, :8], 1e3 * rng.normal(size=pixels[:, 8:].shape)], axis=1, dtype=np.float32)
    params = model.init(jax.random.key(0), Patches(pixels, shapes), ids)["params"]

    @jax.jit
    def likelihoods(params, pixels):
        nll = lambda params: model.apply({"params": params}, Patches(pixels, shapes), ids).caption_nll  # noqa: E731
        return nll(params), jax.grad(lambda params: nll(params).sum())(params)

    expected = likelihoods(params, pixels)
    assert np.ptp(expected[0]) > 0
    for same in (other, pixels[:, :8]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), likelihoods(params, same), expected)


@pytest.mark.slow
def test_a_square_image_of_the_grids_size_is_the_vits(params):
    model = naflex_config().model
    square = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    patches = square.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 48)
    vit = replace(model, image=tiny_config().model.image)
    a = jax.jit(DualEncoder(vit).apply)({"params": params}, image=square).image_embedding
    shapes = np.full((2, 2), 4, np.int32)
    b = jax.jit(DualEncoder(model).apply)({"params": params}, image=Patches(patches, shapes)).image_embedding
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_accumulated_gradients_on_eight_devices_equal_those_of_one(params):
    config = naflex_config((2, 2, 2))
    batch, key = naflex_batch(config), jax.random.key(0)

    def gradients(config, devices):
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        f = jax.jit(make_loss_and_gradients(config, mesh))
        loss, _, grads, _ = f(params, {}, put(batch, mesh), key)
        return float(loss), jax.tree.map(np.asarray, grads)

    loss, grads = gradients(naflex_config(), 1)
    again, accumulated = gradients(replace(config, accumulation_steps=2), 8)
    assert again == pytest.approx(loss, rel=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), grads, accumulated)


@pytest.mark.slow
def test_a_run_trains_evaluates_and_is_evaluated_at_another_budget(tmp_path):
    build_data(tmp_path)
    config = run_config(tmp_path)
    config.model.image.update(name="naflex", max_patches=COUNT)
    config.total_steps = 6
    config.log.figures = True
    config = from_config_dict(config)
    results = train(config, tmp_path / "run")
    assert 0 <= results["retrieval/image_to_text_r10"] <= 1 and (tmp_path / "run/summary.png").exists()
    same = evaluate(tmp_path / "run")
    assert same["max_patches"] == COUNT
    assert same["results"]["retrieval"]["image_to_text_r10"] == results["retrieval/image_to_text_r10"]
    image = replace(config.model.image, max_patches=20)
    more = evaluate(tmp_path / "run", config=replace(config, model=replace(config.model, image=image)))
    assert more["max_patches"] == 20 and more["results"]["retrieval"]["examples"] == 26


def test_training_goes_on_from_a_vit_of_another_resolution():
    """init_from's rule for positions: the grid is resampled, and everything else is the same."""
    source = tiny_config().model
    target = naflex_config(image_size=24).model
    params = jax.jit(lambda: DualEncoder(source).init(jax.random.key(0), image=IMAGE, text=TEXT))()["params"]
    found = jax.jit(lambda p: adapt({"params": p}, source=source, target=target))(params)["params"]
    grid = params["image"].pop("position_embedding")
    expected = resample(np.asarray(grid), (4, 4), (6, 6))
    np.testing.assert_allclose(found["image"].pop("position_embedding"), expected, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_options_that_the_tower_does_not_have_are_refused():
    check(naflex_config(), num_devices=8)
    with pytest.raises(ConfigError, match="'naflex' has no position"):
        naflex_of(replace(tiny_config().model.image, position="sincos"))
    for changed, message in (
        (dict(pool="cls"), "name='naflex' with pool='cls'"),
        (dict(norm="rms"), "norm='rms'"),
        (dict(max_patches=0), "max_patches=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(naflex_config(**changed), num_devices=8)
