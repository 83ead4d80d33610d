"""A last block that computes only the row that is pooled, beside one that computes all rows."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.config import DecoderConfig
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import DualEncoder, cudnn_attention
from clipjax.models.attention import SelfAttention
from clipjax.models.presets import get_preset
from clipjax.planning.flops import step_flops, traced_flops
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.state import create_state
from tests.tiny import tiny_batches, tiny_config

SMALL = dict(width=32, num_heads=4, mlp_dim=64, depth=2)
VARIED = dict(mlp="swiglu", mlp_norm=True, attention_norm=True, qkv_bias="qv", layer_scale=0.5)


def model_of(image=None, text=None, **options):
    base, common = get_preset("clip_vit_b32"), SMALL | {"scan_layers": False}
    image = replace(base.image, **dict(image_size=24, patch_size=8) | common | (image or {}))
    text = replace(base.text, **dict(context_length=9, vocab_size=40) | common | (text or {}))
    return replace(base, image=image, text=text, embed_dim=16, dtype="float32", **options)


def inputs(model, batch=5):
    side, (words, vocab) = model.image.image_size, (model.text.context_length, model.text.vocab_size)
    image = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    text = np.array(jax.random.randint(jax.random.key(1), (batch, words), 1, vocab - 1))
    for i, row in enumerate(text):
        row[2 + i], row[3 + i :] = vocab - 1, 0  # the end of text, at another place in each, and padding
    return {"image": image, "text": jnp.asarray(text)}


def variables_of(model):
    variables = jax.jit(DualEncoder(model).init)(jax.random.key(2), **inputs(model))
    noise = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(3), leaf.shape)  # noqa: E731
    return jax.tree.map(noise, variables)  # so that no bias is zero


def loss_and_gradients(model, variables, all_rows, frozen=(0, 0)):
    # The states of the last layer are all rows of it.
    layers, batch = (-1,) if all_rows else (), inputs(model)

    def loss(variables):
        out = DualEncoder(model, frozen_blocks=frozen).apply(variables, **batch, hidden_layers=layers)
        return jnp.sin(3 * out.image_embedding @ out.text_embedding.T).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    return (out.image_embedding, out.text_embedding), gradients


CASES = {
    "clip": {},
    "last position, not causal": dict(text=dict(pool="last", causal=False)),
    "class token of a text": dict(text=dict(pool="cls")),
    "rotary positions": dict(image=dict(rope=True), text=dict(rope=True)),
    "norm behind the branches": dict(image=dict(post_norm=True), text=dict(post_norm=True)),
    "gates, norms inside, two biases": dict(image=VARIED, text=VARIED),
    "norm after the pool": dict(image=dict(norm_after_pool=True)),
    "remat dots": dict(image=dict(remat="dots"), text=dict(remat="dots")),
    "remat full": dict(image=dict(remat="full"), text=dict(remat="full")),
    "remat attention, in chunks": dict(image=dict(remat="attention", attention_chunk=2), text=dict(remat="attention")),
}


CASES["one block"] = dict(image=dict(depth=1), text=dict(depth=1))
SCANNED = ("clip", "class token of a text", "remat dots", "one block")


@pytest.mark.parametrize(("case", "scanned"), [(case, False) for case in CASES] + [(case, True) for case in SCANNED])
def test_embeddings_and_gradients_are_those_of_all_rows(case, scanned):
    options = {side: CASES[case].get(side, {}) | {"scan_layers": scanned} for side in ("image", "text")}
    model = model_of(**options)
    variables = variables_of(model)
    embeddings, gradients = loss_and_gradients(model, variables, all_rows=False)
    expected, expected_gradients = loss_and_gradients(model, variables, all_rows=True)
    for a, b in zip(embeddings, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected_gradients))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * size)


@pytest.mark.parametrize("text", [dict(rope=True), dict(pool="cls", context_length=8), dict(pool="last", causal=False)])
def test_towers_that_cudnn_needs_padded_pool_the_same_row(text, monkeypatch):
    model = model_of(image=dict(image_size=32, rope="rope" in text), text=text)  # 17 and 9 tokens
    variables = variables_of(model)
    expected = loss_and_gradients(model, variables, all_rows=True)
    monkeypatch.setattr("clipjax.models.attention.fused_by", lambda *args: "cudnn")
    stand_in = functools.partial(cudnn_attention.cudnn_attention, implementation="xla")
    monkeypatch.setattr(cudnn_attention, "cudnn_attention", stand_in)
    found = loss_and_gradients(model, variables, all_rows=False)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_in_bfloat16_the_difference_is_rounding():
    model = replace(model_of(), dtype="bfloat16")
    variables = variables_of(model)
    exact, _ = loss_and_gradients(replace(model, dtype="float32"), variables, all_rows=True)
    for all_rows in (False, True):
        embeddings, _ = loss_and_gradients(model, variables, all_rows)
        for a, b in zip(embeddings, exact, strict=True):
            np.testing.assert_allclose(a, b, atol=0.01)


@pytest.mark.parametrize("frozen", [1, 2])  # of three
def test_scanned_blocks_that_are_frozen_get_no_gradient_and_the_others_the_same(frozen):
    model = model_of(image=dict(scan_layers=True, depth=3), text=dict(scan_layers=True, depth=3))
    variables = variables_of(model)
    _, gradients = loss_and_gradients(model, variables, all_rows=False, frozen=(frozen, frozen))
    _, expected = loss_and_gradients(model, variables, all_rows=True)
    for side in ("image", "text"):
        for a, b in zip(*(jax.tree.leaves(g["params"][side]["blocks"]) for g in (gradients, expected)), strict=True):
            np.testing.assert_allclose(a[frozen:], b[frozen:], atol=1e-5 * max(1.0, float(jnp.abs(b).max())))
            assert not a[:frozen].any()


def test_a_branch_is_dropped_for_whole_examples():
    """Of 64 equal images, with two branches of the last block to drop, no more than four embeddings are made."""
    model = model_of(image=dict(drop_path=0.5, depth=2), text=dict(dropout=0.2))
    variables, batch = variables_of(model), inputs(model)
    batch["image"] = jnp.broadcast_to(batch["image"][:1], (64, *batch["image"].shape[1:]))

    def embeddings(layers):
        rngs = {"dropout": jax.random.key(0)}
        return DualEncoder(model).apply(variables, batch["image"], train=True, rngs=rngs, hidden_layers=layers)

    for layers in ((), (-1,)):
        embedding = embeddings(layers).image_embedding
        kinds = {tuple(row) for row in np.round(np.asarray(embedding), 4).tolist()}
        assert jnp.isfinite(embedding).all() and 1 < len(kinds) <= 4


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_nothing_else_is_computed_of_the_last_block(scanned):
    config = replace(tiny_config(), model=model_of(image=dict(scan_layers=scanned), text=dict(scan_layers=scanned)))
    model, variables = config.model, variables_of(config.model)
    batch = inputs(model)
    traced = traced_flops(lambda v: DualEncoder(model).apply(v, **batch).image_embedding, variables)
    counted = step_flops(replace(config, global_batch_size=5))
    towers = sum(value for part, value in counted.items() if part != "loss") / 3
    assert traced == pytest.approx(towers, rel=0.02)  # the text's last norm of one row, the projection of logits
    whole = step_flops(replace(config, global_batch_size=5, model=replace(model, decoder=DecoderConfig(depth=1))))
    assert counted["image tower"] < 0.8 * whole["image tower"] and counted["text tower"] < 0.8 * whole["text tower"]


def test_a_captioner_reads_all_tokens_and_changes_no_embedding():
    model = model_of()
    captioner = replace(model, decoder=DecoderConfig(depth=1, width=32, num_heads=4, mlp_dim=64))
    variables = variables_of(captioner)
    read = DualEncoder(captioner).apply(variables, **inputs(model))
    plain = DualEncoder(model).apply(variables, **inputs(model))
    assert read.caption_nll is not None
    np.testing.assert_allclose(read.image_embedding, plain.image_embedding, atol=2e-6)
    np.testing.assert_allclose(read.text_embedding, plain.text_embedding, atol=2e-6)


@pytest.mark.parametrize("row", [0, 6, jnp.array([0, 3, 6])], ids=["first", "last", "each its own"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["", "keys", "number"])
def test_rows_of_padding_are_no_keys(row, causal, masked):
    """cuDNN's towers carry a row of padding behind an odd length."""
    seen = {"keys": jnp.arange(7) < jnp.array([[7], [4], [1]]), "number": jnp.array([7, 4, 1])}.get(masked)
    normal, zeros = jax.nn.initializers.normal(0.3), jax.nn.initializers.zeros
    make = lambda keys: SelfAttention(2, causal, normal, normal, zeros, jnp.float32, keys=keys)  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (3, 7, 8))
    variables = make(0).init(jax.random.key(1), x)
    padded = jnp.concatenate([x, 100 * jnp.ones((3, 1, 8))], axis=1)
    y = make(7).apply(variables, padded, None, seen, row)
    whole = make(0).apply(variables, x, None, seen)
    at = jnp.broadcast_to(jnp.asarray(row), (3,))
    np.testing.assert_allclose(y[:, 0], whole[jnp.arange(3), at], atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_on_a_mesh_the_row_has_the_same_gradients_and_stays_on_its_device(shape):
    """The partitioner for GPUs once moved the pooled rows to where FSDP has the weights, with all-to-alls."""

    def program(mesh_shape, devices):
        config = tiny_config(mesh_shape, loss="softmax")
        image = replace(config.model.image, pool="cls", scan_layers=False)
        text = replace(config.model.text, pool="eos", causal=True, scan_layers=False)
        config = replace(config, global_batch_size=16, model=replace(config.model, image=image, text=text))
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        state = create_state(config, mesh)
        (batch,) = tiny_batches(1, 16)
        batch = jax.device_put({name: batch[name] for name in ("image", "text")}, batch_sharding(mesh))
        args = (state.params, state.batch_stats, batch, jax.random.key(0))
        compiled = jax.jit(make_loss_and_gradients(config, mesh, None)).lower(*args).compile()
        return compiled.as_text(), compiled(*args)

    _, (expected_loss, _, expected, _) = program((1, 1, 1), 1)
    text, (loss, _, gradients, _) = program(shape, 8)
    assert "all-to-all" not in text
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), gradients, expected)
    assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(expected)
