"""OpenCLIP's ViT options compute what open_clip computes, and every preset has its parameters."""

from dataclasses import replace

import pytest

from clipjax.interop.names import Tensor, flatten, their_shapes
from clipjax.interop.open_clip_parts import image_tower, text_tower
from clipjax.models.presets import get_preset
from tests.parity.torch_pairs import (
    CONTEXT,
    IMAGE,
    PATCH,
    VOCAB,
    assert_same_model,
    perturb,
    shapes_of,
)
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")

WIDTH, EMBED = 32, 24
POOLER = dict(pooler_queries=5, pooler_heads=2)
THEIR_POOLER = dict(attn_pooler_queries=5, attn_pooler_heads=2)
# what it is called: our options of the image tower, of the text tower; theirs of the image tower, of the text tower
VARIANTS = {
    "layer_scale_quickgelu": (
        dict(layer_scale=0.3, activation="quick_gelu"),
        dict(layer_scale=0.3, activation="quick_gelu"),
        dict(ls_init_value=0.3),
        dict(ls_init_value=0.3),
    ),
    "clipa": (
        dict(pool="gap", class_token=True, norm_after_pool=True, pre_norm=False, activation="gelu_tanh"),
        dict(causal=False, pool="last", activation="gelu_tanh"),
        dict(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True, act_kwargs=dict(approximate="tanh")),
        dict(no_causal_mask=True, pool_type="last", act_kwargs=dict(approximate="tanh")),
    ),
    "sub_norms": (
        dict(attention_norm=True, mlp_norm=True, pool="gap", class_token=True),
        dict(attention_norm=True, mlp_norm=True, projection_bias=True),
        dict(scale_attn_inner=True, scale_fc=True, pool_type="avg"),
        dict(scale_attn_inner=True, scale_fc=True, proj_bias=True),
    ),
    "parallel": (dict(pool="parallel", class_token=True, **POOLER), {}, dict(attentional_pool="parallel"), {}),
    "cascade": (dict(pool="cascade", class_token=True, **POOLER), {}, dict(attentional_pool="cascade"), {}),
}


def ours(image, text, embed_dim):
    model = get_preset("open_clip_vit_b32")
    shared = dict(width=WIDTH, depth=2, num_heads=2, mlp_dim=4 * WIDTH)
    image = replace(model.image, image_size=IMAGE, patch_size=PATCH, **shared, **image)
    text = replace(model.text, vocab_size=VOCAB, context_length=CONTEXT, scan_layers=False, **shared, **text)
    return replace(model, image=image, text=text, embed_dim=embed_dim)


def theirs(image, text, embed_dim, quick_gelu):
    shared = dict(width=WIDTH, layers=2)
    image = dict(image_size=IMAGE, patch_size=PATCH, head_width=WIDTH // 2, **shared, **THEIR_POOLER, **image)
    text = dict(vocab_size=VOCAB, context_length=CONTEXT, heads=2, **shared, **text)
    # CustomTextCLIP: the towers' options are the same, and a projection with a bias is possible in it alone.
    return open_clip.model.CustomTextCLIP(embed_dim, image, text, quick_gelu=quick_gelu)


def tensors(model, prefix="text."):
    return [Tensor("logit_scale", ("logit_scale",)), *text_tower(model, prefix), *image_tower(model)]


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_embeddings_and_gradients_equal_open_clip(name):
    our_image, our_text, their_image, their_text = VARIANTS[name]
    # open_clip's own two poolers fit only where the tower is as wide as the embedding.
    by_two = name in ("parallel", "cascade")
    embed_dim = WIDTH if by_two else EMBED
    model = ours(our_image, our_text, embed_dim)
    clip = perturb(theirs(their_image, their_text, embed_dim, our_image.get("activation") == "quick_gelu"))

    def encode(image, text):
        pooled = clip.visual(image)
        pooled = pooled[:, 0] if by_two else pooled  # their one query is still an axis
        normalize = torch.nn.functional.normalize
        return normalize(pooled, dim=-1), clip.encode_text(text, normalize=True), clip.logit_scale.exp()

    assert_same_model(tensors(model), model, clip, encode=encode)


OPEN_CLIP_NAMES = {
    "open_clip_vit_b32_256": "ViT-B-32-256",
    "open_clip_vit_b32_plus_256": "ViT-B-32-plus-256",
    "open_clip_vit_b16_quickgelu": "ViT-B-16-quickgelu",
    "open_clip_vit_b16_plus": "ViT-B-16-plus",
    "open_clip_vit_b16_plus_240": "ViT-B-16-plus-240",
    "open_clip_vit_l16_320": "ViT-L-16-320",
    "open_clip_vit_l14_280": "ViT-L-14-280",
    "open_clip_vit_l14_336_quickgelu": "ViT-L-14-336-quickgelu",
    "open_clip_vit_h16": "ViT-H-16",
    "open_clip_vit_h14": "ViT-H-14",
    "open_clip_vit_h14_378_quickgelu": "ViT-H-14-378-quickgelu",
    "open_clip_vit_g14": "ViT-g-14",
    "open_clip_vit_bigg14": "ViT-bigG-14",
    "open_clip_vit_e14": "ViT-e-14",
    "clipa_vit_l14_336": "ViT-L-14-CLIPA-336",
    "clipa_vit_h14": "ViT-H-14-CLIPA",
    "clipa_vit_bigg14": "ViT-bigG-14-CLIPA",
}


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_presets_have_the_tensors_of_open_clip_s_models(name):
    """Every name and shape of the full size, built without storage."""
    config = open_clip.get_model_config(OPEN_CLIP_NAMES[name])
    quick_gelu = config.pop("quick_gelu", False)
    config.pop("custom_text", None)
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**config, quick_gelu=quick_gelu)
    model = get_preset(name)
    assert quick_gelu == (model.image.activation == model.text.activation == "quick_gelu")
    expected = their_shapes(tensors(model, prefix=""), model, flatten(shapes_of(model)))
    assert expected == {n: tuple(p.shape) for n, p in clip.named_parameters()}
    assert model.image.num_heads == clip.visual.transformer.resblocks[0].attn.num_heads
    assert model.text.num_heads == clip.transformer.resblocks[0].attn.num_heads
