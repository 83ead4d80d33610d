"""Embeddings and gradients equal those of transformers' CLIPModel and SiglipModel with the same random weights."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import LossConfig
from clipjax.interop.convert import read_variables
from clipjax.interop.families import FAMILIES
from clipjax.interop.names import stored
from clipjax.losses import make_loss
from clipjax.models import DualEncoder
from clipjax.models.presets import PRESETS, get_preset
from clipjax.models.transformer import stack_layers
from tests.interop.test_names import shapes_of
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")

WIDTH, DEPTH, HEADS, MLP, IMAGE, PATCH, VOCAB, CONTEXT = 32, 2, 4, 48, 24, 8, 99, 12


def tiny(preset, vocab_eos=-1):
    model = get_preset(preset)
    shared = dict(width=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_dim=MLP, scan_layers=False)
    image = replace(model.image, image_size=IMAGE, patch_size=PATCH, **shared)
    text = replace(model.text, vocab_size=VOCAB, context_length=CONTEXT, **shared)
    return replace(model, image=image, text=text, embed_dim=WIDTH)


def hf_configs(kind):
    shared = dict(hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=DEPTH, num_attention_heads=HEADS)
    vision = dict(image_size=IMAGE, patch_size=PATCH, **shared)
    text = dict(vocab_size=VOCAB, max_position_embeddings=CONTEXT, **shared)
    if kind == "clip":
        # eos_token_id=2 selects transformers' arg-max rule, OpenAI's own.
        text |= dict(eos_token_id=2, bos_token_id=0, pad_token_id=1)
        return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return transformers.SiglipConfig(text_config=text | {"projection_size": WIDTH}, vision_config=vision)


def arrays(module):
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def to_clipjax(kind, arrays):
    """transformers' parameters as clipjax's tree."""
    model = tiny("clip_vit_b32" if kind == "clip" else "siglip_b16")
    return read_variables(FAMILIES[f"hf_{kind}"].tensors(model), model, stored(arrays), shapes_of(model))["params"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(request):
    kind = request.param
    torch.manual_seed(0)
    hf = (transformers.CLIPModel if kind == "clip" else transformers.SiglipModel)(hf_configs(kind)).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim:  # biases and norms too: zeros and ones would hide a missing one
                parameter.add_(0.05 * torch.randn_like(parameter))
    model = tiny("clip_vit_b32" if kind == "clip" else "siglip_b16")
    rng = np.random.default_rng(0)
    image = rng.normal(size=(6, IMAGE, IMAGE, 3)).astype(np.float32)
    text = rng.integers(3, VOCAB, (6, CONTEXT), dtype=np.int32)
    return kind, hf, model, image, text


def test_embeddings_equal_transformers(pair):
    kind, hf, model, image, text = pair
    params = to_clipjax(kind, arrays(hf))
    out = DualEncoder(model).apply({"params": params}, image=image, text=text)
    with torch.no_grad():
        theirs = hf(input_ids=torch.tensor(text).long(), pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(out.image_embedding, theirs.image_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(out.text_embedding, theirs.text_embeds.numpy(), atol=2e-6)
    logits = out.logit_scale * out.image_embedding @ out.text_embedding.T + out.logit_bias
    np.testing.assert_allclose(logits, theirs.logits_per_image.numpy(), rtol=1e-5, atol=2e-5)


@pytest.mark.slow
def test_gradients_of_the_contrastive_loss_equal_transformers(pair):
    kind, hf, model, image, text = pair
    loss_fn = make_loss(LossConfig("softmax" if kind == "clip" else "sigmoid", "dense"), None)

    def loss(params):
        out = DualEncoder(model).apply({"params": params}, image=image, text=text)
        return loss_fn(out.image_embedding, out.text_embedding, logit_scale=out.logit_scale, logit_bias=out.logit_bias)[
            0
        ]

    params = jax.tree.map(jnp.asarray, to_clipjax(kind, arrays(hf)))
    value, grads = jax.value_and_grad(loss)(params)
    hf.zero_grad()
    theirs = hf(
        input_ids=torch.tensor(text).long(), pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)), return_loss=True
    )
    theirs.loss.backward()
    assert float(value) == pytest.approx(theirs.loss.item(), rel=1e-5)
    expected = to_clipjax(kind, {name: p.grad.numpy() for name, p in hf.named_parameters()})
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True
    ):
        error = np.abs(np.asarray(found) - wanted).max()
        assert error <= 1e-4 * np.abs(wanted).max() + 1e-6 * scale, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_scanned_layers_equal_unrolled_ones(pair):
    kind, hf, model, image, text = pair
    params = jax.tree.map(jnp.asarray, to_clipjax(kind, arrays(hf)))
    scanned = replace(model, image=replace(model.image, scan_layers=True), text=replace(model.text, scan_layers=True))
    stacked = {**params, "image": stack_layers(params["image"]), "text": stack_layers(params["text"])}
    a = DualEncoder(model).apply({"params": params}, image=image, text=text)
    b = DualEncoder(scanned).apply({"params": stacked}, image=image, text=text)
    np.testing.assert_allclose(a.image_embedding, b.image_embedding, atol=1e-6)
    np.testing.assert_allclose(a.text_embedding, b.text_embedding, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("clip_vit")])
def test_presets_have_exactly_the_published_parameters(name):
    """Counted on transformers' models of the published sizes, built without storage."""
    model = get_preset(name)
    image, text = model.image, model.text
    vision = hf_sizes(image) | dict(image_size=image.image_size, patch_size=image.patch_size)
    words = hf_sizes(text) | dict(vocab_size=text.vocab_size, max_position_embeddings=text.context_length)
    config = transformers.CLIPConfig(text_config=words, vision_config=vision, projection_dim=model.embed_dim)
    with torch.device("meta"):
        hf = transformers.CLIPModel(config)
    shapes = jax.eval_shape(
        lambda: DualEncoder(model).init(
            jax.random.key(0),
            image=jnp.zeros((1, image.image_size, image.image_size, 3)),
            text=jnp.zeros((1, text.context_length), jnp.int32),
        )
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(p.numel() for p in hf.parameters())


def hf_sizes(tower):
    return dict(
        hidden_size=tower.width,
        intermediate_size=tower.mlp_dim,
        num_hidden_layers=tower.depth,
        num_attention_heads=tower.num_heads,
    )
