"""Several captions of an image in one step: the loss is that of all its texts, and the image is embedded once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ConfigError, DecoderConfig
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import DualEncoder
from clipjax.models.pixels import normalize_pixels
from clipjax.training.check import check
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.state import create_state
from clipjax.training.step import batch_shapes
from tests.tiny import CONTEXT, VOCAB, tiny_batches, tiny_config

IMAGES, CAPTIONS = 16, 3
# Images 0 and 5 share an id, and so do 1 and 2; 7 has the largest id that a record may have. 3 and 9 are one record
# without an id, twice in the batch (data/examples.py); the rest have none.
PAIR_ID = np.full(IMAGES, -1, np.int32)
PAIR_ID[[0, 5]], PAIR_ID[[1, 2]], PAIR_ID[7] = 3, 0, 2**31 - 1
PAIR_ID[[3, 9]] = -5


def config_of(loss, mesh=(1, 1, 1), count=CAPTIONS, **changes):
    config = tiny_config(mesh, loss=loss)
    return replace(
        config,
        loss=replace(config.loss, repeats="positives"),
        data=replace(config.data, captions_per_image=count),
        global_batch_size=IMAGES,
        **changes,
    )


def batch_of():
    (batch,) = tiny_batches(1, IMAGES)
    text = np.random.default_rng(1).integers(0, VOCAB, (IMAGES, CAPTIONS, CONTEXT), dtype=np.int32)
    return batch | {"text": text, "pair_id": PAIR_ID}


def step_gradients(config):
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(list(vars(config.mesh).values())))])
    state = create_state(config, mesh)
    batch = jax.device_put(batch_of(), batch_sharding(mesh))
    loss, _, grads, _ = jax.jit(make_loss_and_gradients(config, mesh))(
        state.params, state.batch_stats, batch, jax.random.key(0)
    )
    return float(loss), jax.tree.map(np.asarray, (grads, state.params))


def rectangular(name, x, y, scale, bias):
    """The loss written for B images and their B K texts, float64, without repeating an image.

    softmax: an image's target is spread evenly over its positive texts, a text's over its positive images; each side
    is a mean. A text meets every image K times among its rows, which adds log K to its cross-entropy. sigmoid: the sum
    over all pairs of an image and a text, for each image.
    """
    ids = np.where(PAIR_ID != -1, PAIR_ID.astype(np.int64), 2**40 + np.arange(IMAGES))
    positive = ids[:, None] == np.repeat(ids, CAPTIONS)[None, :]
    s = scale * x @ y.T
    if name == "sigmoid":
        s = s + bias
        return jnp.logaddexp(0.0, jnp.where(positive, -s, s)).sum() / IMAGES
    by_image, by_text = (s - jax.nn.logsumexp(s, axis=axis, keepdims=True) for axis in (1, 0))
    of_images = -(by_image * positive).sum(1) / positive.sum(1)
    of_texts = -(by_text * positive).sum(0) / positive.sum(0) + np.log(CAPTIONS)
    return 0.5 * (of_images.mean() + of_texts.mean())


def reference_gradients(config, params):
    """(loss, gradient) by the towers on B images and B K texts and the float64 formula above."""
    batch, pixels = batch_of(), config.data.pixels
    image = normalize_pixels(batch["image"], pixels.mean, pixels.std)

    def value(params):
        out = DualEncoder(config.model).apply({"params": params}, image, batch["text"].reshape(-1, CONTEXT))
        return out.image_embedding, out.text_embedding, out.logit_scale, out.logit_bias

    embedded, pull = jax.vjp(jax.jit(value), params)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in embedded]
        loss, grads = jax.value_and_grad(lambda *a: rectangular(config.loss.name, *a), range(4))(*wide)
    (found,) = pull(tuple(jnp.asarray(np.asarray(g), jnp.float32) for g in grads))
    return float(loss), jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(
    ("loss", "mesh", "micro"),
    [("sigmoid", (1, 1, 1), 1), pytest.param("softmax", (4, 2, 1), 2, marks=pytest.mark.slow)],
)
def test_loss_and_gradient_equal_the_float64_loss_of_images_and_all_their_texts(loss, mesh, micro):
    config = config_of(loss, mesh, accumulation_steps=micro)
    value, (grads, params) = step_gradients(config)
    expected, reference = reference_gradients(config, params)
    assert value == pytest.approx(expected, rel=2e-6)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(reference))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale, err_msg=jax.tree_util.keystr(path))


def test_a_batch_has_the_captions_beside_each_image():
    shapes = batch_shapes(config_of("softmax"))
    assert shapes["text"][0] == (IMAGES, CAPTIONS, CONTEXT) and shapes["image"][0][0] == IMAGES
    assert shapes["pair_id"][0] == (IMAGES,)
    assert batch_shapes(config_of("softmax", count=1))["text"][0] == (IMAGES, CONTEXT)


def test_several_captions_of_an_image_are_refused_where_they_would_not_be_its_positives():
    config = config_of("softmax")
    check(config, num_devices=1)
    for repeats in ("negatives", "ignore"):
        with pytest.raises(ConfigError, match=f"captions_per_image=3 with config.loss.repeats='{repeats}'"):
            check(replace(config, loss=replace(config.loss, repeats=repeats)), num_devices=1)
    coca = config_of("coca")
    text = replace(coca.model.text, causal=True, pool="eos")
    model = replace(coca.model, text=text, decoder=DecoderConfig(depth=1, width=32, num_heads=4, mlp_dim=64))
    with pytest.raises(ConfigError, match="'coca' compares each image with one caption"):
        check(replace(coca, model=model), num_devices=1)
