"""Micro-batches change memory, not the gradient; repeats, teachers and captions reach the loss."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.config import DecoderConfig, LossConfig, MeshConfig
from clipjax.losses import make_loss
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import DualEncoder
from clipjax.models.pixels import normalize_pixels
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.state import abstract_state, create_state, eval_variables
from clipjax.training.step import batch_shapes, lower_step, make_train_step
from clipjax.training.teacher import Teacher
from tests.tiny import tiny_batches, tiny_config

BATCH = 64
KEY = jax.random.key(3)


def batch_of(config, mesh):
    (batch,) = tiny_batches(1, config.global_batch_size)
    pair_id = (np.arange(config.global_batch_size) % 7 - 1).astype(np.int32)
    batch = {name: value for name, value in (batch | {"pair_id": pair_id}).items() if name in batch_shapes(config)}
    return jax.device_put(batch, batch_sharding(mesh))


def gradients(config, devices, teacher=None):
    """(loss, grads) of one batch at the initial parameters."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    state = create_state(config, mesh)
    run = jax.jit(make_loss_and_gradients(config, mesh, teacher))
    extra = (teacher.variables,) if teacher else ()
    loss, _, grads, _ = run(state.params, state.batch_stats, batch_of(config, mesh), KEY, *extra)
    return float(loss), grads


def difference(a, b):
    """|a - b| / |b| over whole trees."""
    a, b = (jax.tree.map(np.asarray, tree) for tree in (a, b))
    return float(optax.tree.norm(jax.tree.map(np.subtract, a, b)) / optax.tree.norm(b))


def config_for(name, mesh=(1, 1, 1), **changes):
    config = tiny_config(mesh, loss=name)
    if name == "coca":
        decoder = DecoderConfig(depth=1, width=32, num_heads=4, mlp_dim=64)
        text = replace(config.model.text, causal=True, pool="eos")
        config = replace(config, model=replace(config.model, text=text, decoder=decoder))
    return replace(config, global_batch_size=BATCH, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh", "count"),
    [
        ("softmax", (1, 1, 1), 2),
        ("softmax", (4, 2, 1), 4),
        ("sigmoid", (8, 1, 1), 2),
        ("sigmoid", (2, 2, 2), 4),
        ("coca", (4, 2, 1), 2),
    ],
)
def test_accumulated_gradients_equal_those_of_the_whole_batch(name, mesh, count):
    config, devices = config_for(name, mesh), int(np.prod(mesh))
    loss, grads = gradients(config, devices)
    accumulated_loss, accumulated = gradients(replace(config, accumulation_steps=count), devices)
    assert accumulated_loss == pytest.approx(loss, rel=1e-6)
    assert difference(accumulated, grads) < 1e-6


@pytest.mark.slow
def test_accumulation_keeps_repeats_with_their_rows():
    config = config_for("softmax", (4, 2, 1))
    config = replace(config, loss=replace(config.loss, repeats="positives"))
    loss, grads = gradients(config, 8)
    accumulated_loss, accumulated = gradients(replace(config, accumulation_steps=2), 8)
    assert accumulated_loss == pytest.approx(loss, rel=1e-6)
    assert difference(accumulated, grads) < 1e-6


@pytest.mark.slow
def test_dropout_is_replayed_as_it_was_when_embedding():
    """Against plain autodiff of the micro-batched forward pass, which has no second pass to get wrong."""
    config = replace(config_for("softmax"), accumulation_steps=4)
    image = replace(config.model.image, dropout=0.3, drop_path=0.3)
    config = replace(config, model=replace(config.model, image=image))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    params, batch = create_state(config, mesh).params, batch_of(config, mesh)
    model, loss_fn, pixels = (
        DualEncoder(config.model),
        make_loss(LossConfig("softmax", "dense"), None),
        config.data.pixels,
    )

    def loss(params):
        rows = BATCH // 4
        outs = [
            model.apply(
                {"params": params},
                image=normalize_pixels(batch["image"][i * rows : (i + 1) * rows], pixels.mean, pixels.std),
                text=batch["text"][i * rows : (i + 1) * rows],
                train=True,
                rngs={"dropout": jax.random.fold_in(KEY, i)},
            )
            for i in range(4)
        ]
        x, y = (jnp.concatenate([getattr(out, f"{side}_embedding") for out in outs]) for side in ("image", "text"))
        return loss_fn(x, y, logit_scale=outs[0].logit_scale, logit_bias=outs[0].logit_bias)[0]

    expected = jax.jit(jax.grad(loss))(params)
    assert difference(gradients(config, 1)[1], expected) < 1e-6
    without = replace(config, model=replace(config.model, image=replace(image, dropout=0.0, drop_path=0.0)))
    assert difference(gradients(without, 1)[1], expected) > 0.1


@pytest.mark.slow
def test_thirty_two_thousand_examples_fit_one_device():
    """The compiler's own account: memory beyond the arguments does not grow with the batch but for embeddings."""

    def temporaries(size, count):
        config = replace(config_for("softmax"), global_batch_size=size, accumulation_steps=count)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        compiled = lower_step(config, mesh, abstract_state(config, mesh), None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(64, 1), temporaries(32_768, 512)
    embeddings = 2 * 32_768 * 32 * 4
    # The micro-batches of pixels and tokens in their new order, and copies of the embeddings and their gradients.
    pixels = 32_768 * (16 * 16 * 3 + 8 * 4)
    assert large < 2 * small + 6 * embeddings + 2 * pixels
    assert large < 32_768**2 * 4 / 30, "nothing like a B x B matrix (4.3 GB)"


@pytest.mark.slow
def test_a_student_learns_from_its_teachers_similarities():
    mesh = make_mesh(MeshConfig(4, 2, 1), jax.devices())
    config = config_for("distill", (4, 2, 1))
    teacher_config = replace(config_for("softmax", (4, 2, 1)), seed=1)
    teacher = Teacher(teacher_config, eval_variables(create_state(teacher_config, mesh)))
    for count in (1, 2):
        loss, grads = gradients(replace(config, accumulation_steps=count), 8, teacher)
        if count == 1:
            whole = loss, grads
    assert loss == pytest.approx(whole[0], rel=1e-6)
    assert difference(grads, whole[1]) < 1e-6

    state = create_state(config, mesh)
    step = make_train_step(config, mesh, state, teacher)
    batch, distill = batch_of(config, mesh), []
    for _ in range(20):
        state, metrics = step(state, batch, teacher.variables)
        distill.append(float(metrics["distill_loss"]))
        assert float(metrics["loss"]) == pytest.approx(float(metrics["softmax_loss"]) + distill[-1], rel=1e-6)
    assert distill[-1] < distill[0] - 0.01


@pytest.mark.slow
def test_captions_are_learnt():
    mesh = make_mesh(MeshConfig(4, 2, 1), jax.devices())
    config = config_for("coca", (4, 2, 1), total_steps=60)
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=3e-3))
    state = create_state(config, mesh)
    step, batch, caption = make_train_step(config, mesh, state), batch_of(config, mesh), []
    for _ in range(60):
        state, metrics = step(state, batch)
        caption.append(float(metrics["caption_loss"]))
    # Weighted by 2; a uniform guess among 64 words is 2 log 64 = 8.3.
    assert caption[0] == pytest.approx(2 * np.log(64), rel=0.15)
    assert caption[-1] < 0.8 * caption[0]


@pytest.mark.slow
def test_captioning_counts_tokens_to_the_end_of_text_and_sees_no_later_word():
    config = config_for("coca").model
    model = DualEncoder(config)
    image = jax.random.normal(KEY, (3, 16, 16, 3))
    text = jnp.array([[1, 5, 6, 63, 0, 0, 0, 0], [1, 63, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 63]])
    params = model.init(KEY, image=image, text=text)
    counts = model.apply({}, text, method=DualEncoder.caption_tokens)
    assert counts.tolist() == [3, 1, 7]
    nll = model.apply(params, image=image, text=text).caption_nll
    padded = model.apply(params, image=image, text=text.at[0, 4:].set(9)).caption_nll
    np.testing.assert_allclose(nll, padded, rtol=1e-5)
    # Another last word changes that word's likelihood only: the difference is between two words at one position.
    assert not np.allclose(nll[2], model.apply(params, image=image, text=text.at[2, 6].set(8)).caption_nll[2])
    assert not np.allclose(nll[0], model.apply(params, image=-image, text=text).caption_nll[0]), "the image matters"
