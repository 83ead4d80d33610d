"""EVA-CLIP in open_clip's directories and in its own files: imported, exported, equal."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.commands import export
from clipjax.config import MeshConfig
from clipjax.interop import eva
from clipjax.interop.convert import their_arrays
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import InteropError, flatten, their_shapes
from clipjax.mesh import make_mesh
from clipjax.models import presets
from clipjax.models.presets import get_preset
from clipjax.models.presets.eva import EVA_PRESETS
from tests.parity.test_interop_open_clip import EMBED, IMAGE, PATCH, assert_reads_computes_and_writes, config_of
from tests.parity.torch_pairs import as_torch, inputs, shapes_of
from tests.torch_reference import import_torch

torch = import_torch()
timm = import_torch("timm")

TINY = "eva02_tiny_patch4_clip_16"


@pytest.fixture
def config(monkeypatch):
    """Of a trunk as EVA-02-CLIP's B/16, small enough for a test; timm's own class and settings."""

    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **options):
        model = timm.models.eva.Eva(
            img_size=IMAGE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, mlp_ratio=1.5, qkv_fused=False,
            swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16),
            **options,
        )  # fmt: skip
        model.default_cfg = {}
        return model

    build.__name__, build.__module__ = TINY, "timm.models.eva"
    timm.models.register_model(build)
    sizes = dict(image_size=IMAGE, patch_size=PATCH, width=32, depth=2, num_heads=2, mlp_dim=48)
    monkeypatch.setitem(eva.TRUNKS, TINY, replace(eva.TRUNKS["eva02_base_patch16_clip_224"], **sizes))
    config = config_of(custom_text=True)
    vision = dict(image_size=IMAGE, timm_model_name=TINY, timm_model_pretrained=False, timm_pool="token")
    return config | dict(vision_cfg=vision | dict(timm_proj=None))


@pytest.mark.slow
def test_both_formats_of_one_model_hold_the_same(config, tmp_path, monkeypatch):
    out = assert_reads_computes_and_writes("open_clip_eva", config, tmp_path)

    foreign = open_foreign(tmp_path / "original")
    model, mesh = foreign.config.model, make_mesh(MeshConfig(), jax.devices()[:1])
    variables = foreign.variables(mesh)
    # Their files also have tables of sines and cosines, once for all blocks.
    state = {name: torch.tensor(array) for name, array in their_arrays(eva.original_tensors(model), model, variables)}
    state["visual.rope.freqs_cos"] = torch.zeros(16, 16)
    torch.save(state, tmp_path / "EVA02_CLIP_tiny.pt")
    monkeypatch.setitem(presets.PRESETS, "tiny", model)
    with pytest.raises(InteropError, match="Name one with --preset"):
        open_foreign(tmp_path / "EVA02_CLIP_tiny.pt")
    original = open_foreign(tmp_path / "EVA02_CLIP_tiny.pt", preset="tiny")
    assert original.name == "eva_clip"
    jax.tree.map(np.testing.assert_array_equal, original.variables(mesh), variables)

    # Out again in the original's names: refused for a model that their code has no name for.
    with pytest.raises(InteropError, match="eva_clip: EVA-CLIP.s own files have no configuration"):
        export.run(tmp_path / "run", tmp_path / "again", format="eva_clip")
    monkeypatch.setitem(eva.EVA_PRESETS, "tiny", model)
    export.run(tmp_path / "run", tmp_path / "again", format="eva_clip")
    written = torch.load(tmp_path / "again" / "model.pt", weights_only=True)
    tables = {"visual.rope.freqs_cos"}  # which their code computes, and drops from what it reads
    assert written.keys() == state.keys() - tables
    for name, tensor in written.items():
        assert torch.equal(tensor, state[name]), name
    named = open_foreign(tmp_path / "again")  # its sizes are a preset's now
    assert (named.name, named.config.model.image.mlp) == ("eva_clip", "swiglu")
    # timm's reader of the original's files makes its own model of them again.
    trunk = timm.create_model(TINY, num_classes=EMBED, global_pool="token")
    visual = {name.removeprefix("visual."): t for name, t in written.items() if name.startswith("visual.")}
    trunk.load_state_dict(timm.models.eva.checkpoint_filter_fn(visual, trunk), strict=True)
    image, _ = inputs()
    with torch.no_grad():
        features = torch.nn.functional.normalize(trunk.eval()(as_torch(image, np.zeros(1))[0]), dim=-1)
    np.testing.assert_allclose(out.image_embedding, features.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", EVA_PRESETS)
def test_the_original_s_sizes_tell_the_models_apart(name):
    model = get_preset(name)
    shapes = their_shapes(eva.original_tensors(model), model, flatten(shapes_of(model)))
    assert eva.read_original(eva.Description({}, shapes)).model == model


def test_a_trunk_that_is_not_eva_clip_s_is_refused(config, tmp_path):
    assert config["embed_dim"] == EMBED
    description = lambda vision: eva.Description({"open_clip_config.json": {"model_cfg": config | vision}}, {})  # noqa: E731
    for option in (
        dict(timm_pool="avg"),
        dict(timm_proj="linear"),
        dict(timm_model_name="eva02_large"),
        dict(image_size=8),
    ):
        with pytest.raises(InteropError, match=next(iter(option))):
            eva.read(description(dict(vision_cfg=config["vision_cfg"] | option)))
