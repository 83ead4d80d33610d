"""EVA-CLIP's image towers compute what timm's trunks inside open_clip compute; both of their names hold the same."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.interop import eva
from clipjax.interop.convert import their_arrays
from clipjax.interop.names import flatten, their_shapes
from clipjax.models.presets import get_preset
from tests.parity.torch_pairs import CONTEXT, IMAGE, PATCH, VOCAB, arrays, assert_same_model, perturb, read, shapes_of
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")
timm = import_torch("timm")

EMBED = 24
# what it is called: the preset; the options of timm's model function for it (timm models/eva.py)
SWIGLU = dict(swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16))
VARIANTS = {
    "eva02_clip_l14": dict(mlp_ratio=1.5, qkv_fused=False, scale_mlp=True, scale_attn_inner=True, **SWIGLU),
    "eva02_clip_s14": dict(mlp_ratio=1.5, **SWIGLU),
    "eva02_clip_bige14": dict(mlp_ratio=1.5, use_post_norm=True),
    "eva01_clip_g14": dict(mlp_ratio=1.5),
    "eva_clip_8b": dict(mlp_ratio=1.5, qkv_bias=False, norm_layer=timm.layers.RmsNorm),
}


def ours(name):
    model = get_preset(name)
    # Grids of 4 x 4 patches: EVA-02's positions run to 16 over them.
    image = replace(model.image, image_size=IMAGE, patch_size=PATCH, width=32, depth=2, num_heads=2, mlp_dim=48)
    text = dict(vocab_size=VOCAB, context_length=CONTEXT, width=24, depth=1, num_heads=2, mlp_dim=96)
    return replace(model, image=image, text=replace(model.text, scan_layers=False, **text), embed_dim=EMBED)


def original(name):
    text = dict(vocab_size=VOCAB, context_length=CONTEXT, width=24, heads=2, layers=1)
    image = dict(image_size=IMAGE, patch_size=PATCH, width=32, layers=1, head_width=16)
    clip = open_clip.model.CustomTextCLIP(EMBED, image, text)
    clip.visual = torch.nn.Module()
    sizes = dict(img_size=IMAGE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2)
    clip.visual.trunk = timm.models.eva.Eva(num_classes=EMBED, global_pool="token", **sizes, **VARIANTS[name])
    return perturb(clip)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_embeddings_and_gradients_equal_timm(name):
    model, clip = ours(name), original(name)

    def encode(image, text):
        normalize = torch.nn.functional.normalize
        return (
            normalize(clip.visual.trunk(image), dim=-1),
            clip.encode_text(text, normalize=True),
            clip.logit_scale.exp(),
        )

    assert_same_model(eva.timm_tensors(model), model, clip, encode=encode)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_original_s_names_hold_the_same_numbers(name):
    """timm itself reads the original's file: what it makes of ours must be its own model again."""
    model, clip = ours(name), original(name)
    theirs = arrays(clip)
    params = read(eva.timm_tensors(model), model, theirs)
    written = dict(their_arrays(eva.original_tensors(model), model, {"params": params}))
    gated_in_one = name == "eva02_clip_s14"
    if gated_in_one:  # timm's packed w1 and w2 has no reader of its own
        for i in range(2):
            at = f"visual.blocks.{i}.mlp"
            w1, w2 = theirs[f"visual.trunk.blocks.{i}.mlp.fc1.weight"].reshape(2, 48, 32)
            np.testing.assert_array_equal(written[f"{at}.w1.weight"], w1)
            np.testing.assert_array_equal(written[f"{at}.w2.weight"], w2)
    else:
        state = timm.models.eva.checkpoint_filter_fn(
            {n: torch.tensor(a) for n, a in written.items()}, clip.visual.trunk
        )
        again = {f"visual.trunk.{n}": a.numpy() for n, a in state.items()}
        trunk = {n: a for n, a in theirs.items() if n.startswith("visual.trunk.")}
        assert again.keys() == trunk.keys()
        for n, array in trunk.items():
            np.testing.assert_array_equal(again[n], array, err_msg=n)
    read_back = read(eva.original_tensors(model), model, written)
    jax.tree.map(np.testing.assert_array_equal, read_back, params)


NAMES = {
    "eva01_clip_g14": "EVA01-g-14",
    "eva01_clip_g14_plus": "EVA01-g-14-plus",
    "eva02_clip_b16": "EVA02-B-16",
    "eva02_clip_l14": "EVA02-L-14",
    "eva02_clip_l14_336": "EVA02-L-14-336",
    "eva02_clip_bige14": "EVA02-E-14",
    "eva02_clip_bige14_plus": "EVA02-E-14-plus",
}


@pytest.mark.parametrize("name", NAMES)
def test_presets_have_the_tensors_of_open_clip_s_models(name):
    config = open_clip.get_model_config(NAMES[name])
    config.pop("custom_text")
    with torch.device("meta"):
        clip = open_clip.model.CustomTextCLIP(**config)
    model = get_preset(name)
    expected = their_shapes(eva.timm_tensors(model), model, flatten(shapes_of(model)))
    assert expected == {n: tuple(p.shape) for n, p in clip.named_parameters()}
    assert model.image.num_heads == clip.visual.trunk.blocks[0].attn.num_heads


@pytest.mark.parametrize(("name", "trunk"), [("ti14", "eva02_tiny_patch14_224"), ("s14", "eva02_small_patch14_224")])
def test_the_small_trunks_are_timm_s(name, trunk):
    model = get_preset(f"eva02_clip_{name}")
    with torch.device("meta"):
        timm_trunk = timm.create_model(trunk, num_classes=model.embed_dim, global_pool="token")
    expected = their_shapes(eva.timm_tensors(model), model, flatten(shapes_of(model)))
    found = {f"visual.trunk.{n}": tuple(p.shape) for n, p in timm_trunk.named_parameters()}
    assert {n: shape for n, shape in expected.items() if n.startswith("visual.")} == found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "billions"), [("eva_clip_8b", 7.5), ("eva_clip_18b", 17.5)])
def test_the_largest_image_towers_have_the_published_sizes(name, billions):
    """Nobody's installed code has them; 2402.04252 gives one digit behind the point."""
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(get_preset(name))["params"]["image"]))
    assert total / 1e9 == pytest.approx(billions, rel=0.01)
