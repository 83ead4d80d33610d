"""ViTamin in open_clip: imported, trained and exported, it is the same model."""

import functools
from dataclasses import replace

import pytest

from clipjax.interop import open_clip_vitamin
from clipjax.interop.names import InteropError
from clipjax.interop.open_clip_vitamin import TRUNKS
from clipjax.models.presets import get_preset
from tests.parity import torch_pairs
from tests.parity.conv_towers import Pair
from tests.parity.test_interop_open_clip import (
    EMBED,
    IMAGE,
    assert_full_size_is_open_clips,
    assert_reads_computes_and_writes,
    config_of,
)
from tests.parity.torch_pairs import perturb
from tests.torch_reference import import_torch

torch = import_torch()
open_clip = import_torch("open_clip")
vitamin = import_torch("timm.models.vitamin")
timm = import_torch("timm")

NAME, WIDTH, SIZE = "vitamin_tiny_32", 32, 2 * IMAGE


@pytest.fixture
def tiny(monkeypatch):
    """(our image tower, open_clip's configuration) of one that is small enough for a test."""

    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **options):
        sizes = vitamin.VitCfg(embed_dim=(8, 16, WIDTH), depths=(2, 1, 1), stem_width=8)
        backbone = vitamin.MbConvStages(cfg=sizes)
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=SIZE, patch_size=1, embed_dim=WIDTH, depth=2, num_heads=2, mlp_layer=vitamin.GeGluMlp,
            mlp_ratio=2.0, class_token=False, embed_layer=functools.partial(
                timm.layers.HybridEmbed, backbone=backbone, proj=False
            ), **{"global_pool": "avg", **options},
        )  # fmt: skip
        model.default_cfg = {}
        return model

    build.__name__, build.__module__ = NAME, "timm.models.vitamin"
    if not timm.is_model(NAME):
        timm.models.register_model(build)
    sizes = dict(image_size=SIZE, width=WIDTH, depth=2, num_heads=2, mlp_dim=2 * WIDTH)
    image = replace(TRUNKS["vitamin_small_224"], stage_widths=(8, 16), stage_depths=(2, 1), **sizes)
    monkeypatch.setitem(TRUNKS, NAME, image)
    vision = dict(image_size=SIZE, timm_model_name=NAME, timm_model_pretrained=False, timm_pool="", timm_proj="linear")
    return image, config_of(custom_text=True) | dict(vision_cfg=vision | dict(timm_drop=0.0, timm_drop_path=0.1))


@pytest.mark.slow
def test_embeddings_and_files_are_those_of_open_clip(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pairs, "IMAGE", SIZE)  # of the images that both are given
    assert_reads_computes_and_writes("open_clip_vitamin", tiny[1], tmp_path)


@pytest.mark.slow
def test_gradients_are_those_of_timm(tiny):
    image, config = tiny
    visual = perturb(open_clip.model._build_vision_tower(EMBED, open_clip.model.CLIPVisionCfg(**config["vision_cfg"])))
    model = replace(get_preset("vitamin_s"), image=replace(image, drop_path=0.0), embed_dim=EMBED)
    table = [tensor for tensor in open_clip_vitamin.tensors(model) if tensor.ours.startswith("image/")]
    table = [tensor._replace(theirs=(tensor.theirs[0].removeprefix("visual."),)) for tensor in table]
    pair = Pair(visual, model, table, visual)
    pair.check_embeddings(1e-5)
    pair.check_gradients(train=False)


OPEN_CLIP_NAMES = {
    "vitamin_s": "ViTamin-S",
    "vitamin_s_ltt": "ViTamin-S-LTT",
    "vitamin_b": "ViTamin-B",
    "vitamin_b_ltt": "ViTamin-B-LTT",
    "vitamin_l_336": "ViTamin-L-336",
    "vitamin_l2": "ViTamin-L2",
    "vitamin_xl_256": "ViTamin-XL-256",
}


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_presets_are_open_clip_s_models(name):
    """Every option, name and shape of the full size, built without storage."""
    assert_full_size_is_open_clips(open_clip_vitamin.FAMILY, OPEN_CLIP_NAMES[name], get_preset(name))


@pytest.mark.parametrize("option", [dict(timm_pool="map"), dict(timm_proj="mlp"), dict(image_size=256)])
def test_a_vitamin_that_is_not_published_is_refused(option):
    config = open_clip.get_model_config("ViTamin-S")
    files = {"open_clip_config.json": {"model_cfg": config | dict(vision_cfg=config["vision_cfg"] | option)}}
    with pytest.raises(InteropError, match=next(iter(option))):
        open_clip_vitamin.read(open_clip_vitamin.Description(files, {}))
