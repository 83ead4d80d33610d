"""Float32's own error bounds every loss, comm and number of devices, at every scale; a metric's gradient is its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import LossConfig, MeshConfig
from clipjax.losses import LOSSES, Inputs, make_loss
from clipjax.mesh import batch_sharding, make_mesh
from tests.losses import np32, references

SCALES = (1.0, 10.0, 100.0)
# Captions that follow their images loosely, and unrelated ones.
NOISES = (0.3, None)
SEEDS = range(4)
MESHES = {1: (1, 1, 1), 3: (3, 1, 1), 8: (4, 2, 1)}
BATCH, DIM = 96, 64
# (how many times NumPy's error; an error that is allowed where NumPy's float32 happens to be more precise), relative to
# the largest element. NumPy's sums depend on the processor, and devices add up all pairs in another order than NumPy.
ALLOWED = {"value": (3, 3e-6), "image": (2, 2e-6), "text": (2, 2e-6), "scale": (3, 1e-5), "bias": (3, 3e-6)}
COMMS = ["dense", "all_gather", "chunked", "ring"]
TWO_PASSES = [name for name in LOSSES if name != "sigmoid"]


def unit(a):
    return (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def inputs(name, noise, seed, repeats):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, DIM))
    y = rng.normal(size=(BATCH, DIM)) if noise is None else x + noise * rng.normal(size=(BATCH, DIM))
    others = {}
    if repeats != "negatives":
        others["pair_id"] = rng.integers(0, BATCH // 2, BATCH).astype(np.int32)
    if name == "distill":
        teacher = rng.normal(size=(BATCH, 16))
        others["teacher_image_embedding"] = unit(teacher)
        others["teacher_text_embedding"] = unit(teacher + rng.normal(size=teacher.shape))
        others["teacher_logit_scale"] = np.float32(7.0)
    if name == "coca":
        others["caption_tokens"] = rng.integers(1, 9, BATCH).astype(np.float32)
        others["caption_nll"] = (others["caption_tokens"] * rng.uniform(1, 3, BATCH)).astype(np.float32)
    return unit(x), unit(y), others


@functools.cache
def exact_and_float32(name, noise, seed, repeats, scale):
    """What is right, and the error of the same formula in NumPy's float32."""
    x, y, others = inputs(name, noise, seed, repeats)
    config = LOSSES[name].config(name, repeats=repeats)
    exact = np32.value_and_grads(config, x, y, scale, -10.0, np.float64, **others)
    return exact, errors(np32.value_and_grads(config, x, y, scale, -10.0, np.float32, **others), exact)


def errors(found, exact):
    return np.array(
        [
            np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-30)
            for a, b in zip(found, exact, strict=True)
        ]
    )


def assert_near_float32s_own_error(name, comm, devices, repeats):
    mesh = make_mesh(MeshConfig(*MESHES[devices]), jax.devices()[:devices])
    rows = batch_sharding(mesh)
    loss_fn = make_loss(LOSSES[name].config(name, comm, repeats=repeats), mesh)

    @jax.jit
    def run(x, y, scale, others):
        loss = lambda x, y, scale, bias: loss_fn(x, y, logit_scale=scale, logit_bias=bias, **others)[0]  # noqa: E731
        return jax.value_and_grad(loss, range(4))(x, y, scale, jnp.float32(-10.0))

    for scale in SCALES:
        ours, own = [], []
        for noise in NOISES:
            for seed in SEEDS:
                x, y, others = inputs(name, noise, seed, repeats)
                exact, float32 = exact_and_float32(name, noise, seed, repeats, scale)
                others = {k: jax.device_put(v, rows) if np.ndim(v) else v for k, v in others.items()}
                value, grads = run(*jax.device_put((x, y), rows), jnp.float32(scale), others)
                ours.append(errors((value, *grads), exact))
                own.append(float32)
        worst = zip(np.max(ours, 0), np.max(own, 0), ALLOWED.items(), strict=True)
        for found, numpys, (what, (times, floor)) in worst:
            assert found <= max(times * numpys, floor), f"{what} at scale {scale}: {found:.1e}, NumPy's: {numpys:.1e}"


@pytest.mark.parametrize("name", ["softmax", "ntxent"])
def test_both_passes_see_the_same_logits_on_eight_devices(name):
    assert_near_float32s_own_error(name, "all_gather", 8, "positives")


@pytest.mark.parametrize("name", ["sigmoid", "cyclip"])
def test_a_loss_is_as_precise_as_numpys_float32(name):
    assert_near_float32s_own_error(name, "all_gather", 8, "negatives")


@pytest.mark.slow
@pytest.mark.parametrize("repeats", ["negatives", "positives", "ignore"])
@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_as_precise_as_numpys_float32(name, comm, devices, repeats):
    assert_near_float32s_own_error(name, comm, devices, repeats)


@pytest.mark.parametrize("noise", [0.1, 0.01, 0.001])
def test_cyclips_consistency_of_images_and_texts_that_agree_keeps_its_digits(noise):
    """The difference of two large sums had an error of 1.6e-3 where images and texts agree."""
    config = LOSSES["cyclip"].config()
    x, y, _ = inputs("cyclip", noise, 0, "negatives")
    extra = LOSSES["cyclip"](config).extra
    args = [jnp.asarray(a) for a in (x, y)]
    consistency = lambda x, y: sum(extra(Inputs(x, y, None, None)).values())  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(consistency, (0, 1)))(*args)
    exact, without = (np32.value_and_grads(c, x, y, 1.0, 0.0, np.float64) for c in (config, LossConfig()))
    expected = [a - b for a, b in zip(exact[:3], without[:3], strict=True)]
    assert errors((value, *grads), expected).max() <= 2e-6


@pytest.mark.slow
def test_the_written_out_float64_losses_equal_the_references():
    for name in LOSSES:
        for repeats in ("negatives", "positives", "ignore"):
            x, y, others = inputs(name, 0.3, 0, repeats)
            config = LOSSES[name].config(name, repeats=repeats)
            expected = references.value_and_grads(config, x, y, 10.0, -10.0, **others)
            assert errors(np32.value_and_grads(config, x, y, 10.0, -10.0, np.float64, **others), expected).max() < 1e-9


@functools.cache
def distill_on(comm):
    mesh = make_mesh(MeshConfig())
    x, y, others = inputs("distill", None, 0, "negatives")
    loss_fn = make_loss(LOSSES["distill"].config(comm=comm), mesh)
    arrays = jax.device_put((x, y), batch_sharding(mesh))
    return lambda x, y: loss_fn(x, y, logit_scale=jnp.float32(10.0), logit_bias=jnp.float32(0.0), **others), arrays


@pytest.mark.parametrize(
    "comm", ["all_gather", *(pytest.param(c, marks=pytest.mark.slow) for c in COMMS[::2] + COMMS[3:])]
)
def test_the_gradient_of_a_metric_is_its_own(comm):
    """distill's two parts, alone, with each other and with the loss: not nought, and not the loss's gradient."""
    loss_fn, arrays = distill_on(comm)
    x, y, others = inputs("distill", None, 0, "negatives")
    softmax = np32.value_and_grads(LossConfig(), x, y, 10.0, 0.0, np.float64)[1:3]
    whole = np32.value_and_grads(LOSSES["distill"].config(), x, y, 10.0, 0.0, np.float64, **others)[1:3]

    def weighted(x, y, by_loss, by_softmax, by_distill):
        loss, parts = loss_fn(x, y)
        return by_loss * loss + by_softmax * parts["softmax_loss"] + by_distill * parts["distill_loss"]

    found = jax.jit(jax.grad(lambda x, y: loss_fn(x, y)[1]["softmax_loss"], (0, 1)))(*arrays)
    assert errors(found, softmax).max() < 5e-6
    found = jax.jit(jax.grad(lambda x, y: weighted(x, y, 0.5, 2.0, -1.0), (0, 1)))(*arrays)
    expected = [0.5 * w + 2 * s - (w - s) for w, s in zip(whole, softmax, strict=True)]
    assert errors(found, expected).max() < 5e-6


def test_metrics_that_nothing_is_differentiated_by_cost_a_train_step_nothing():
    loss_fn, arrays = distill_on("all_gather")
    both = lambda x, y: (lambda loss, parts: loss + parts["softmax_loss"])(*loss_fn(x, y))  # noqa: E731
    steps = (
        jax.value_and_grad(lambda x, y: loss_fn(x, y)[0], (0, 1)),
        jax.value_and_grad(loss_fn, (0, 1), has_aux=True),
        jax.value_and_grad(both, (0, 1)),
    )
    alone, with_metrics, by_a_metric = (jax.jit(s).lower(*arrays).as_text().count("stablehlo.while") for s in steps)
    assert alone == with_metrics < by_a_metric, "only the gradient of a metric needs another pass"


def test_the_loss_of_one_part_gives_its_metric_the_same_gradient():
    mesh = make_mesh(MeshConfig())
    x, y, _ = inputs("cyclip", None, 0, "negatives")
    loss_fn = make_loss(LOSSES["cyclip"].config(), mesh)
    metric = lambda x, y: loss_fn(x, y, logit_scale=10.0, logit_bias=0.0)[1]["softmax_loss"]  # noqa: E731
    found = jax.jit(jax.grad(metric, (0, 1)))(x, y)
    assert errors(found, np32.value_and_grads(LossConfig(), x, y, 10.0, 0.0, np.float64)[1:3]).max() < 5e-6
