"""CoCa computes what open_clip's computes: both embeddings, every word's likelihood, gradients of both losses."""

from dataclasses import replace

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


# PyTorch keeps one matrix for q, k and v where keys are as wide as queries, three where they are not.
@pytest.mark.parametrize("image_width", [32, TEXT])
def test_embeddings_likelihoods_and_gradients_equal_open_clip(image_width):
    model, original = pair(image_width)
    tensors, (image, text) = coca.tensors(model), inputs()
    theirs = arrays(original)
    params = read(tensors, model, theirs)
    value, out, gradients = loss_and_gradients(model, params, image, text, CAPTION_WEIGHT)

    found = original(*as_torch(image, text))
    words = torch.nn.functional.cross_entropy(
        found["logits"].permute(0, 2, 1), found["labels"], ignore_index=0, reduction="none"
    )
    loss = torch_softmax_loss(found["image_features"], found["text_features"], found["logit_scale"])
    loss = loss + CAPTION_WEIGHT * words.sum() / (found["labels"] != 0).sum()
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
