"""PE-Core, MobileCLIP and timm's CLIP ViTs in open_clip: imported, trained and exported, they are the same models."""

import functools
from dataclasses import replace

import pytest

from clipjax.interop import open_clip_timm
from clipjax.interop.names import InteropError
from clipjax.interop.open_clip_timm import TRUNKS
from clipjax.models.presets import get_preset
from tests.parity.conv_towers import Pair, randomise
from tests.parity.test_interop_open_clip import (
    EMBED,
    IMAGE,
    PATCH,
    assert_full_size_is_open_clips,
    assert_reads_computes_and_writes,
    config_of,
)
from tests.parity.torch_pairs import perturb
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")
timm = import_torch("timm")
nn = torch.nn

WIDTH = 32
SIZES = dict(embed_dim=WIDTH, depth=2, num_heads=2)
OUR_SIZES = dict(image_size=IMAGE, patch_size=PATCH, width=WIDTH, depth=2, num_heads=2, mlp_dim=4 * WIDTH)


def pe_core(**options):
    """timm's class with the settings of its PE-Core; seven heads fewer in the pool."""
    shared = dict(img_size=IMAGE, patch_size=PATCH, attn_type="rope", use_pre_transformer_norm=True)
    rope = dict(use_rot_pos_emb=True, ref_feat_shape=(6, 6), rope_grid_indexing="xy")
    pool = dict(attn_pool_num_heads=4, attn_pool_mlp_ratio=3.0, norm_layer=functools.partial(nn.LayerNorm, eps=1e-5))
    return timm.models.eva.Eva(**shared, **rope, **pool, **SIZES, **options)


def mobileclip(**options):
    """timm's class with the settings of its vit_base_mci_224."""
    stem = timm.models.vision_transformer_hybrid.ConvStem(
        channels=(8, WIDTH), stride=(2, 2), kernel_size=(2, 2), padding=0, act_layer=nn.GELU, depth=2
    )
    embed = functools.partial(timm.layers.HybridEmbed, backbone=stem, proj=False)
    shared = dict(img_size=IMAGE, patch_size=1, embed_layer=embed, no_embed_class=True)
    return timm.models.vision_transformer.VisionTransformer(**shared, **SIZES, **options)


def clip_vit(**options):
    """timm's class with the settings of its vit_large_patch14_clip_224."""
    shared = dict(img_size=IMAGE, patch_size=PATCH, pre_norm=True, norm_layer=functools.partial(nn.LayerNorm, eps=1e-5))
    return timm.models.vision_transformer.VisionTransformer(**shared, **SIZES, **options)


PE = dict(rope_grid=6, map_heads=4, map_mlp_dim=3 * WIDTH)
# timm's full size name: the tiny one's class, its options; our options that make the full size tiny.
VARIANTS = {
    "vit_pe_core_base_patch16_224": (pe_core, dict(rope_grid_offset=1.0), PE),
    "vit_pe_core_gigantic_patch14_448": (pe_core, dict(class_token=False, mlp_ratio=5.0), PE | dict(mlp_dim=5 * WIDTH)),
    "vit_base_mci_224": (mobileclip, {}, dict(stem_strides=(2, 2), stem_width=8)),
    "vit_large_patch14_clip_224": (clip_vit, {}, {}),
}


@pytest.fixture(params=VARIANTS)
def tiny(request, monkeypatch):
    """(our image tower, open_clip's configuration) of a trunk small enough for a test, known to timm and to clipjax."""
    name = "tiny_" + request.param
    make, options, ours = VARIANTS[request.param]

    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **others):
        model = make(**options, **others)
        model.default_cfg = {}
        return model

    build.__name__, build.__module__ = name, "timm.models.eva"
    if not timm.is_model(name):
        timm.models.register_model(build)
    full = TRUNKS[request.param]
    trunk = full._replace(image=replace(full.image, **OUR_SIZES | ours))
    monkeypatch.setitem(TRUNKS, name, trunk)
    vision = dict(image_size=IMAGE, timm_model_name=name, timm_model_pretrained=False)
    config = config_of(text=dict(no_causal_mask=trunk.pool == "token"), custom_text=True)
    return trunk.image, config | dict(vision_cfg=vision | dict(timm_pool=trunk.pool, timm_proj=None))


@pytest.mark.slow
def test_embeddings_and_files_are_those_of_open_clip(tiny, tmp_path):
    assert_reads_computes_and_writes("open_clip_timm", tiny[1], tmp_path)


@pytest.mark.slow
def test_gradients_and_running_statistics_are_those_of_timm(tiny):
    image, config = tiny
    vision = open_clip.model.CLIPVisionCfg(**config["vision_cfg"])
    visual = open_clip.model._build_vision_tower(EMBED, vision)
    has_statistics = any("running" in name for name, _ in visual.named_buffers())
    (randomise if has_statistics else perturb)(visual)
    model = replace(get_preset("pe_core_b16_224"), image=image, embed_dim=EMBED)
    pair = Pair(visual, model, open_clip_timm.trunk(model, "trunk"), visual)
    pair.check_embeddings(1e-5)
    pair.check_gradients(train=False)
    if has_statistics:
        pair.check_gradients(train=True)


OPEN_CLIP_NAMES = {
    "pe_core_t16_384": "PE-Core-T-16-384",
    "pe_core_s16_384": "PE-Core-S-16-384",
    "pe_core_b16_224": "PE-Core-B-16",
    "pe_core_l14_336": "PE-Core-L-14-336",
    "pe_core_g14_448": "PE-Core-bigG-14-448",
    "mobileclip_b": "MobileCLIP-B",
    "mobileclip2_b": "MobileCLIP2-B",
    "mobileclip2_l14": "MobileCLIP2-L-14",
}


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_presets_are_open_clip_s_models(name):
    """Every option, name and shape of the full size, built without storage."""
    model = get_preset(name)
    clip = assert_full_size_is_open_clips(open_clip_timm.FAMILY, OPEN_CLIP_NAMES[name], model)
    normed = [m.eps for m in clip.visual.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert set(normed) == {model.image.norm_eps}


@pytest.mark.parametrize(
    "option",
    [
        dict(timm_pool="avg"),
        dict(timm_proj="linear"),
        dict(image_size=256),
        dict(timm_model_name="vit_pe_core_base_patch32_224"),
    ],
)
def test_a_trunk_that_is_not_published_is_refused(option):
    config = open_clip.get_model_config("PE-Core-B-16")
    files = {"open_clip_config.json": {"model_cfg": config | dict(vision_cfg=config["vision_cfg"] | option)}}
    with pytest.raises(InteropError, match=next(iter(option))):
        open_clip_timm.read(open_clip_timm.Description(files, {}))
