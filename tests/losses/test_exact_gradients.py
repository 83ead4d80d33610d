"""Value and gradient of every loss in every form equal float64 arithmetic, on any mesh and tile."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ConfigError, LossConfig, MeshConfig
from clipjax.losses import LOSSES, make_loss
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.planning.hlo import collectives, parse
from tests.losses import references
from tests.torch_reference import import_torch

BATCH, DIM = 64, 24
MESHES = {
    1: (1, 1, 1),
    2: (2, 1, 1),
    3: (3, 1, 1),
    4: (1, 4, 1),
    5: (5, 1, 1),
    8: (4, 2, 1),
    "8 with tensor": (2, 2, 2),
}
FORMS = ["dense", "all_gather", "chunked", "ring"]
REPEATS = ["negatives", "positives", "ignore"]


def unit(a):
    return (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)


def config_of(name, *args, **fields):
    return LOSSES[name].config(name, *args, **fields)


def embeddings(seed=0, batch=BATCH, noise=1.0):
    """Unit-length image and text embeddings; noise 0 makes them equal, 1 unrelated."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, DIM))
    return unit(x), unit((1 - noise) * x + noise * rng.normal(size=(batch, DIM)))


def others(name, batch=BATCH, repeats="negatives"):
    """What the loss needs besides embeddings; every third example repeats an earlier one."""
    rng = np.random.default_rng(1)
    found = {}
    if repeats != "negatives":
        found["pair_id"] = np.where(np.arange(batch) % 3 == 2, rng.integers(-4, 3, batch), -1).astype(np.int32)
    if name == "distill":
        x = rng.normal(size=(batch, 16))
        found["teacher_image_embedding"], found["teacher_text_embedding"] = unit(x), unit(x + rng.normal(size=x.shape))
        found["teacher_logit_scale"] = np.float32(7.0)
    if name == "coca":
        found["caption_tokens"] = rng.integers(1, 9, batch).astype(np.float32)
        found["caption_nll"] = (found["caption_tokens"] * rng.uniform(1, 3, batch)).astype(np.float32)
    return found


def value_and_grads(config, shape, x, y, scale, bias, **rest):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    loss_fn = make_loss(config, mesh)

    @jax.jit
    def run(args, rest):
        def loss(args):
            x, y, scale, bias = args
            return loss_fn(x, y, logit_scale=scale, logit_bias=bias, **rest)[0]

        return jax.value_and_grad(loss)(args)

    rows = batch_sharding(mesh)
    rest = {name: jax.device_put(value, rows) if np.ndim(value) else value for name, value in rest.items()}
    loss, grads = run((*jax.device_put((x, y), rows), jnp.float32(scale), jnp.float32(bias)), rest)
    return loss, *grads


def assert_close(found, expected, rtol):
    """Relative to the largest element of each: a gradient's zeros are not held to their own size."""
    for a, b in zip(found, expected, strict=True):
        assert np.abs(np.asarray(a, np.float64) - b).max() <= rtol * np.abs(b).max() + 1e-12


def assert_equals_float64(config, shape, batch=BATCH, rtol=5e-6):
    x, y = embeddings(noise=0.7, batch=batch)
    rest = others(config.name, batch, config.repeats)
    expected = references.value_and_grads(config, x, y, 4.0, -3.0, **rest)
    assert_close(value_and_grads(config, shape, x, y, 4.0, -3.0, **rest), expected, rtol)


@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("comm", FORMS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_value_and_gradient_equal_float64_on_any_mesh(name, comm, devices):
    batch = BATCH if devices not in (3, 5) else 60
    assert_equals_float64(config_of(name, comm), MESHES[devices], batch)


@pytest.mark.parametrize("comm", FORMS)
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("softmax", "sigmoid")])
def test_the_family_equals_float64_on_eight_devices(name, comm):
    assert_equals_float64(config_of(name, comm), MESHES[8])


@pytest.mark.slow
@pytest.mark.parametrize("repeats", ["positives", "ignore"])
@pytest.mark.parametrize("comm", ["dense", "all_gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_repeats_are_positives_or_ignored_as_float64_says(name, comm, repeats):
    assert_equals_float64(config_of(name, comm, tile=4, repeats=repeats), MESHES[8])


@pytest.mark.parametrize("tile", [1, 4, 8])
@pytest.mark.parametrize("comm", ["all_gather", "chunked", "ring"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_tiles_change_no_number(name, comm, tile):
    assert_equals_float64(config_of(name, comm, tile), (8, 1, 1))


@pytest.mark.parametrize("comm", FORMS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "distill"])
def test_bfloat16_embeddings_meet_exactly_as_they_were_rounded(name, comm):
    """The float64 loss of the rounded embeddings; the gradient reaches the unrounded ones unchanged."""
    x, y = embeddings(noise=0.7)
    to_bfloat16 = lambda a: a.astype(jnp.bfloat16).astype(np.float32)  # noqa: E731
    rest = others(name)
    by_rounded = {n: to_bfloat16(a) if np.ndim(a) == 2 else a for n, a in rest.items()}
    config = config_of(name, comm, tile=4, dtype="bfloat16")
    expected = references.value_and_grads(config, to_bfloat16(x), to_bfloat16(y), 4.0, -3.0, **by_rounded)
    assert_close(value_and_grads(config, (8, 1, 1), x, y, 4.0, -3.0, **rest), expected, rtol=5e-6)
    unrounded = references.value_and_grads(config, x, y, 4.0, -3.0, **rest)
    assert np.abs(np.asarray(unrounded[1]) - expected[1]).max() > 1e-4 * np.abs(expected[1]).max(), "it does round"


@pytest.mark.parametrize(("comm", "kind"), [("all_gather", "all-gather"), ("ring", "collective-permute")])
def test_bfloat16_halves_what_embeddings_move(comm, kind):
    def bytes_of_embeddings(dtype):
        moved = collectives(parse(compiled_text(LossConfig("softmax", comm, dtype=dtype))), 8)
        return sum(c.bytes_received * c.times for c in moved if c.kind == kind)

    exact, rounded = bytes_of_embeddings("float32"), bytes_of_embeddings("bfloat16")
    scalars = 7 / 8 * 512 * 4 * 8  # log-sum-exps, scales, cotangents and positions
    # The ring's gradients of visitors travel in float32.
    share = 0.5 if comm == "all_gather" else 0.75
    assert rounded <= share * exact + scalars


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_references_derivatives_are_those_written_out_by_hand(name):
    """references.py leans on autodiff; these two are checked against derivatives on paper, in NumPy."""
    x, y = embeddings(noise=0.7)
    scale, bias, n, eye = 4.0, -3.0, BATCH, np.eye(BATCH)
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    cosine = x64 @ y64.T
    if name == "softmax":
        s = scale * cosine
        r, c = np.log(np.exp(s).sum(1, keepdims=True)), np.log(np.exp(s).sum(0))
        loss, ds, dbias = (
            np.mean(0.5 * (r[:, 0] + c) - np.diag(s)),
            (np.exp(s - r) + np.exp(s - c) - 2 * eye) / (2 * n),
            0,
        )
    else:
        s, z = scale * cosine + bias, 2 * eye - 1
        loss, ds = np.logaddexp(0, -z * s).sum() / n, -z / (1 + np.exp(z * s)) / n
        dbias = ds.sum()
    by_hand = (loss, scale * ds @ y64, scale * ds.T @ x64, (ds * cosine).sum(), dbias)
    assert_close(references.value_and_grads(config_of(name), x, y, scale, bias), by_hand, rtol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("comm", ["all_gather", "chunked", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_scale_100_neither_overflows_nor_underflows(name, comm, noise):
    """At scale 100 a bare exp overflows, and one shifted by the scale underflows when no pair is similar."""
    x, y = embeddings(noise=noise)
    y = -y if noise else y
    config, rest = config_of(name, comm, 4), others(name)
    found = value_and_grads(config, (8, 1, 1), x, y, 100.0, -10.0, **rest)
    assert all(np.isfinite(np.asarray(a)).all() for a in found)
    # Logits of 100 carry float32 rounding of 4e-6 each into the exponent.
    expected = references.value_and_grads(config, x, y, 100.0, -10.0, **rest)
    assert float(found[0]) == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    for a, b in zip(found[1:3], expected[1:3], strict=True):
        # cyclip's consistency of equal embeddings is a difference of equal numbers: nought up to rounding.
        assert np.abs(a - b).max() <= 5e-5 * np.abs(b).max() + (1e-8 if name == "cyclip" else 1e-12)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "distill", "coca"])
def test_losses_equal_open_clips(name):
    torch, theirs = import_torch(), import_torch("open_clip.loss")
    x, y = embeddings(noise=0.7)
    rest = others(name)
    a, b = (torch.tensor(e, requires_grad=True) for e in (x, y))
    scale, bias = torch.tensor(4.0), torch.tensor(-3.0)
    if name == "softmax":
        loss = theirs.ClipLoss()(a, b, scale)
    elif name == "sigmoid":
        loss = theirs.SigLipLoss()(a, b, scale, bias)
    elif name == "distill":
        teacher = (torch.tensor(value) for value in rest.values())
        loss = sum(theirs.DistillClipLoss()(a, b, scale, *teacher))
    else:
        # One token a caption, uniform over as many words as give its loss: open_clip takes logits, we take the sum.
        rest["caption_tokens"] = np.ones(BATCH, np.float32)
        logits = torch.tensor(np.random.default_rng(2).normal(size=(BATCH, 1, 11)).astype(np.float32))
        labels = torch.arange(BATCH)[:, None] % 11
        rest["caption_nll"] = -logits.log_softmax(-1)[torch.arange(BATCH), 0, labels[:, 0]].numpy()
        loss = sum(
            theirs.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=-1)(a, b, logits, labels, scale)
        )
    loss.backward()
    found = value_and_grads(config_of(name), (8, 1, 1), x, y, 4.0, -3.0, **rest)
    assert_close(found[:3], (loss.item(), a.grad.numpy(), b.grad.numpy()), rtol=5e-6)


def test_label_smoothing_equals_torchs_cross_entropy():
    torch = import_torch()
    x, y = embeddings(noise=0.7)
    a, b = (torch.tensor(e, requires_grad=True) for e in (x, y))
    s, diagonal = 4.0 * a @ b.T, torch.arange(BATCH)
    entropy = torch.nn.functional.cross_entropy
    loss = 0.5 * (entropy(s, diagonal, label_smoothing=0.1) + entropy(s.T, diagonal, label_smoothing=0.1))
    loss.backward()
    found = value_and_grads(config_of("label_smoothing"), (8, 1, 1), x, y, 4.0, 0.0)
    assert_close(found[:3], (loss.item(), a.grad.numpy(), b.grad.numpy()), rtol=5e-6)


@pytest.mark.slow
def test_ntxent_equals_optaxs():
    import optax

    x, y = embeddings(noise=0.7)
    found = value_and_grads(LossConfig("ntxent"), (8, 1, 1), x, y, 4.0, 0.0)
    ids = jnp.tile(jnp.arange(BATCH), 2)
    loss, (dx, dy) = jax.value_and_grad(lambda xy: optax.losses.ntxent(jnp.concatenate(xy), ids, temperature=0.25))(
        (jnp.asarray(x), jnp.asarray(y))
    )
    # optax normalises again, so only the part of the gradient along the sphere is its own.
    along = lambda g, e: g - (g * e).sum(1, keepdims=True) * e  # noqa: E731
    assert_close((found[0], along(found[1], x), along(found[2], y)), (loss, dx, dy), rtol=2e-5)


def test_parts_are_metrics_and_add_up():
    mesh = make_mesh(MeshConfig())
    x, y = embeddings(noise=0.7)
    for name, parts in {
        "distill": ["distill_loss", "softmax_loss"],
        "coca": ["caption_loss", "contrastive_loss"],
    }.items():
        loss, metrics = jax.jit(make_loss(config_of(name), mesh))(x, y, logit_scale=4.0, logit_bias=0.0, **others(name))
        assert sorted(metrics) == parts
        assert float(loss) == pytest.approx(sum(float(v) for v in metrics.values()), rel=1e-6)
    assert jax.jit(make_loss(LossConfig("softmax"), mesh))(x, y, logit_scale=4.0, logit_bias=0.0)[1] == {}


def compiled_text(config, batch=512):
    mesh = make_mesh(MeshConfig())
    loss_fn = make_loss(config, mesh)
    x, y = embeddings(batch=batch)
    rest = others(config.name, batch)

    def loss(x, y):
        return loss_fn(x, y, logit_scale=jnp.float32(10), logit_bias=jnp.float32(-10), **rest)[0]

    sharding = batch_sharding(mesh)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), in_shardings=(sharding, sharding), out_shardings=None)
    return step.lower(x, y).compile().as_text()


@pytest.mark.parametrize("comm", ["all_gather", "chunked", "ring"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "distill"])
def test_no_buffer_is_as_large_as_the_similarities(name, comm):
    text = compiled_text(config_of(name, comm, tile=32))
    sizes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    largest = max(np.prod(size) for size in sizes)
    # The gathered embeddings, not a [64, 512] block of a device's similarities.
    assert (32, 32) in sizes
    assert largest <= 512 * DIM
    assert not any(sorted(size)[-2:] in ([64, 512], [512, 512]) for size in sizes if len(size) > 1)


def test_ring_and_gather_need_no_reduce_scatter_and_the_ring_no_gather():
    for name in ("softmax", "sigmoid"):
        gather, ring = compiled_text(config_of(name, "all_gather")), compiled_text(config_of(name, "ring"))
        assert "reduce-scatter" not in gather
        assert "collective-permute" not in gather
        assert "all-gather" not in ring
        assert "collective-permute" in ring


def test_bad_settings_are_refused_with_the_fields_name():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ConfigError, match="config.loss.name='sigmod'.*'sigmoid'"):
        make_loss(LossConfig("sigmod"), mesh)
    x, y = embeddings()
    with pytest.raises(ConfigError, match="config.loss is a LossConfig, but 'cyclip' reads a CyclipConfig"):
        make_loss(LossConfig("cyclip"), mesh)
    with pytest.raises(ConfigError, match="config.loss.comm='rings' is unknown. Did you mean 'ring'"):
        make_loss(LossConfig(comm="rings"), mesh)
    with pytest.raises(ConfigError, match="config.loss.tile=3 does not divide the 8 rows"):
        make_loss(LossConfig(tile=3), mesh)(x, y, logit_scale=1.0, logit_bias=0.0)
    with pytest.raises(ConfigError, match="batch of 60 does not divide"):
        make_loss(LossConfig(), mesh)(x[:60], y[:60], logit_scale=1.0, logit_bias=0.0)
    with pytest.raises(ConfigError, match="'distill'.* needs teacher_image_embedding"):
        make_loss(config_of("distill"), mesh)(x, y, logit_scale=1.0, logit_bias=0.0)
    with pytest.raises(ConfigError, match="'softmax'.* needs pair_id"):
        make_loss(LossConfig(repeats="ignore"), mesh)(x, y, logit_scale=1.0, logit_bias=0.0)
