"""CoCa computes what open_clip's computes: both embeddings, every word's likelihood, gradients of both losses."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.config import DecoderConfig
from clipjax.interop import coca
from clipjax.interop.convert import their_arrays
from clipjax.interop.names import flatten, their_shapes
from clipjax.models.presets import get_preset
from tests.parity.torch_pairs import (
    CONTEXT,
    IMAGE,
    PATCH,
    VOCAB,
    arrays,
    as_torch,
    assert_equal_gradients,
    inputs,
    loss_and_gradients,
    perturb,
    read,
    shapes_of,
    torch_softmax_loss,
)
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")

TEXT = 24  # the embedding's width and the captioner's too, as in the published models
CAPTION_WEIGHT = 2.0


def pair(image_width):
    model = get_preset("coca_vit_b32")
    image = dict(image_size=IMAGE, patch_size=PATCH, width=image_width, depth=2, num_heads=2)
    text = dict(vocab_size=VOCAB, context_length=CONTEXT, width=TEXT, depth=1, num_heads=2, mlp_dim=4 * TEXT)
    model = replace(
        model,
        image=replace(model.image, mlp_dim=4 * image_width, pooler_queries=5, pooler_heads=2, **image),
        text=replace(model.text, scan_layers=False, **text),
        decoder=DecoderConfig(depth=2, width=TEXT, num_heads=2, mlp_dim=4 * TEXT),
        embed_dim=TEXT,
    )
    shared = dict(context_length=CONTEXT, vocab_size=VOCAB, width=TEXT, heads=2)
    original = open_clip.coca_model.CoCa(
        TEXT,
        multimodal_cfg=dict(layers=2, **shared),
        text_cfg=dict(layers=1, embed_cls=True, output_tokens=True, **shared),
        vision_cfg=dict(
            image_size=IMAGE,
            patch_size=PATCH,
            width=image_width,
            layers=2,
            head_width=image_width // 2,
            attentional_pool=True,
            attn_pooler_queries=5,
            attn_pooler_heads=2,
            output_tokens=True,
        ),
    )
    with torch.no_grad():
        # open_clip leaves this one uninitialised.
        original.text_decoder.text_projection.normal_(std=0.2)
    return model, perturb(original)


def theirs_of(original, image, text):
    """(outputs, every word's -log likelihood, loss) of open_clip's model."""
    found = original(*as_torch(image, text))
    words = torch.nn.functional.cross_entropy(
        found["logits"].permute(0, 2, 1), found["labels"], ignore_index=0, reduction="none"
    )
    loss = torch_softmax_loss(found["image_features"], found["text_features"], found["logit_scale"])
    return found, words, loss + CAPTION_WEIGHT * words.sum() / (found["labels"] != 0).sum()


# PyTorch keeps one matrix for q, k and v where keys are as wide as queries, three where they are not.
@pytest.mark.slow
@pytest.mark.parametrize("image_width", [32, TEXT])
def test_embeddings_likelihoods_and_gradients_equal_open_clip(image_width):
    model, original = pair(image_width)
    tensors, (image, text) = coca.tensors(model), inputs()
    theirs = arrays(original)
    params = read(tensors, model, theirs)
    value, out, gradients = loss_and_gradients(model, params, image, text, CAPTION_WEIGHT)

    found, words, loss = theirs_of(original, image, text)
    loss.backward()
    np.testing.assert_allclose(out.image_embedding, found["image_features"].detach().numpy(), atol=5e-6)
    np.testing.assert_allclose(out.text_embedding, found["text_features"].detach().numpy(), atol=5e-6)
    np.testing.assert_allclose(out.caption_nll, words.sum(1).detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_equal_gradients(gradients, read(tensors, model, arrays(original, gradients=True)))

    back = dict(their_arrays(tensors, model, {"params": params}))
    assert back.keys() == theirs.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.slow
def test_bfloat16_rounds_as_much_as_pytorch_s():
    """Embeddings, likelihoods and gradients are as near to float32 as open_clip's own in bfloat16, within a factor of
    1.5 and a rounding of 2^-8."""
    model, original = pair(32)
    tensors, (image, text) = coca.tensors(model), inputs()
    params = read(tensors, model, arrays(original))
    _, out, gradients = loss_and_gradients(replace(model, dtype="bfloat16"), params, image, text, CAPTION_WEIGHT)

    def theirs(rounded):
        original.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
            found, words, loss = theirs_of(original, image, text)
        loss.backward()
        flat = jax.tree.leaves(read(tensors, model, arrays(original, gradients=True)))
        outputs = found["image_features"], found["text_features"], words.sum(1)
        return [a.detach().float().numpy() for a in outputs] + [np.concatenate([a.ravel() for a in flat])]

    exact, expected = theirs(False), theirs(True)
    leaves = [np.asarray(a).ravel() for a in jax.tree.leaves(gradients)]
    ours = [out.image_embedding, out.text_embedding, out.caption_nll, np.concatenate(leaves)]
    for name, a, b, wanted in zip(("image", "text", "words", "gradients"), ours, expected, exact, strict=True):
        error = lambda found, wanted=wanted: np.linalg.norm(found - wanted) / np.linalg.norm(wanted)  # noqa: E731
        assert 0 < error(a) <= 1.5 * error(b) + 2**-8, (name, error(a), error(b))
        assert name == "gradients" or error(a) <= 4 * 2**-8, (name, error(a))


@pytest.mark.parametrize(("name", "original"), [("coca_vit_b32", "coca_ViT-B-32"), ("coca_vit_l14", "coca_ViT-L-14")])
def test_presets_have_the_tensors_of_open_clip_s_models(name, original):
    config = open_clip.get_model_config(original)
    config.pop("custom_text")
    with torch.device("meta"):
        theirs = open_clip.coca_model.CoCa(**config)
    model = get_preset(name)
    expected = their_shapes(coca.tensors(model), model, flatten(shapes_of(model)))
    assert expected == {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    assert model.decoder.num_heads == theirs.text_decoder.cross_attn[0].attn.num_heads
    assert model.image.pooler_heads == theirs.visual.attn_pool.attn.num_heads
