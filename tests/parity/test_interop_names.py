"""MetaCLIP 2, BiomedCLIP and timm's plain ViTs: imported, they compute as their libraries do, and go back."""

import functools
import json
import os
from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import MeshConfig
from clipjax.interop.foreign import open_foreign
from clipjax.interop.open_clip_timm import TRUNKS
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from tests.parity.test_interop_open_clip import EMBED, IMAGE, PATCH, assert_reads_computes_and_writes, config_of, saved
from tests.parity.torch_pairs import CONTEXT, VOCAB, as_torch, inputs, perturb
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
open_clip = import_torch("open_clip")
timm = import_torch("timm")

WIDTH = 32
SMALL = dict(image_size=IMAGE, patch_size=PATCH, width=WIDTH, depth=2, num_heads=2, mlp_dim=4 * WIDTH)
# timm's full size name -> timm's settings of it, beside sizes
PLAIN = {
    "vit_base_patch16_224": {},
    "vit_medium_patch16_gap_256": dict(
        class_token=False, global_pool="avg", qkv_bias=False, init_values=0.3, fc_norm=False
    ),
    "vit_base_patch16_clip_224": dict(pre_norm=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5)),
}


def register_tiny(name, monkeypatch):
    """A trunk small enough for a test, known to timm and to clipjax under another name, which is returned."""
    tiny, sizes = f"small_{name}", dict(img_size=IMAGE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2)

    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **options):
        model = timm.models.vision_transformer.VisionTransformer(**{**sizes, **PLAIN[name], **options})
        model.default_cfg = {}
        return model

    build.__name__, build.__module__ = tiny, "timm.models.vision_transformer"
    if not timm.is_model(tiny):
        timm.models.register_model(build)
    full = TRUNKS[name]
    monkeypatch.setitem(TRUNKS, tiny, full._replace(image=replace(full.image, **SMALL)))
    return tiny


def computed(path, image, text):
    """What clipjax makes of a directory's weights: the family's name, and the outputs."""
    foreign = open_foreign(path)
    variables = foreign.variables(make_mesh(MeshConfig(), jax.devices()[:1]))
    return foreign, jax.jit(DualEncoder(foreign.config.model).apply)(variables, image=image, text=text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pool", "proj"),
    [
        ("vit_base_patch16_224", "", "linear"),
        ("vit_base_patch16_224", "avg", "linear"),
        ("vit_base_patch16_224", "token", None),
        ("vit_medium_patch16_gap_256", "", "linear"),
    ],
)
def test_timm_s_plain_trunks_compute_what_open_clip_computes(name, pool, proj, tmp_path, monkeypatch):
    vision = dict(image_size=IMAGE, timm_model_name=register_tiny(name, monkeypatch), timm_pool=pool, timm_proj=proj)
    config = config_of(custom_text=True) | dict(vision_cfg=vision | dict(timm_model_pretrained=False))
    assert_reads_computes_and_writes("open_clip_timm", config, tmp_path)


@pytest.mark.slow
def test_a_clip_trunk_with_a_head_of_open_clip_s_is_written_as_open_clip_s_own_vit(tmp_path, monkeypatch):
    """The same function under other names, and without timm."""
    vision = dict(image_size=IMAGE, timm_model_name=register_tiny("vit_base_patch16_clip_224", monkeypatch))
    vision |= dict(timm_model_pretrained=False, timm_pool="token", timm_proj="linear")
    theirs = saved(config_of(custom_text=True) | dict(vision_cfg=vision), tmp_path / "original")
    _, out = computed(tmp_path / "original", *inputs())
    images, _ = as_torch(*inputs())
    with torch.no_grad():
        expected = theirs.encode_image(images, normalize=True)
    np.testing.assert_allclose(out.image_embedding, expected.numpy(), atol=1e-5)
    import_weights.run(tmp_path / "original", tmp_path / "run", parity=False)
    export.run(tmp_path / "run", tmp_path / "out", format="open_clip")
    again = open_clip.create_model(f"local-dir:{tmp_path / 'out'}", load_weights=False)
    open_clip.load_checkpoint(again, str(tmp_path / "out" / "open_clip_model.safetensors"), strict=True)
    with torch.no_grad():
        np.testing.assert_allclose(again.eval().encode_image(images, normalize=True), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["nothing", "config.json"])
def test_biomedclip_computes_what_open_clip_computes(beside, tmp_path, monkeypatch):
    """timm's plain ViT beside a BERT that only its tensors, or its own config.json, describe."""
    heads = 2 if beside == "nothing" else 4
    sizes = dict(vocab_size=VOCAB, hidden_size=128, num_hidden_layers=2, num_attention_heads=heads)
    bert = transformers.BertConfig(**sizes, intermediate_size=48, max_position_embeddings=64, attention_dropout=0.0)
    monkeypatch.setattr(open_clip.hf_model.AutoConfig, "from_pretrained", lambda name: bert)
    hub = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    text = dict(hf_model_name=hub, hf_tokenizer_name=hub, hf_model_pretrained=False, context_length=CONTEXT)
    text |= dict(hf_proj_type="mlp", hf_pooler_type="cls_last_hidden_state_pooler")
    trunk = register_tiny("vit_base_patch16_224", monkeypatch)
    vision = dict(image_size=IMAGE, timm_model_name=trunk, timm_model_pretrained=False)
    vision |= dict(timm_pool="", timm_proj="linear")
    theirs = perturb(open_clip.CustomTextCLIP(EMBED, vision, text))
    path = tmp_path / "biomed"
    path.mkdir()
    document = {"model_cfg": dict(embed_dim=EMBED, vision_cfg=vision, text_cfg=text), "preprocess_cfg": {}}
    (path / "open_clip_config.json").write_text(json.dumps(document))
    if beside != "nothing":
        bert.to_json_file(path / beside, use_diff=False)
    torch.save({"state_dict": {f"module.{n}": t for n, t in theirs.state_dict().items()}}, path / "epoch_1.pt")
    image, ids = inputs()
    foreign, out = computed(path, image, ids)
    assert foreign.name == "open_clip_hf_text" and foreign.config.model.text.num_heads == heads
    images, texts = as_torch(image, ids)
    with torch.no_grad():
        expected = theirs.encode_image(images, normalize=True), theirs.encode_text(texts, normalize=True)
    for found, wanted in zip((out.image_embedding, out.text_embedding), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


@pytest.mark.slow
def test_metaclip_2_computes_what_transformers_computes_and_goes_back_equal(tmp_path):
    """Its end of text is 2, which occurs once and is not the largest id."""
    shared = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.MetaClip2Config(
        text_config=dict(vocab_size=VOCAB, max_position_embeddings=CONTEXT, eos_token_id=2, bos_token_id=0, **shared),
        vision_config=dict(image_size=IMAGE, patch_size=PATCH, **shared),
        projection_dim=EMBED,
    )
    theirs = perturb(transformers.MetaClip2Model(config))
    theirs.save_pretrained(tmp_path / "original")
    image, text = inputs()
    text = np.where(text == VOCAB - 1, 2, np.clip(text, 3, None)).astype(np.int32)
    text[:, 1] = VOCAB - 1  # the largest id, elsewhere
    foreign, out = computed(tmp_path / "original", image, text)
    assert foreign.name == "hf_clip"
    images, texts = as_torch(image, text)
    with torch.no_grad():
        expected = theirs(input_ids=texts, pixel_values=images)
    np.testing.assert_allclose(out.image_embedding, expected.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(out.text_embedding, expected.text_embeds.numpy(), atol=1e-5)

    import_weights.run(tmp_path / "original", tmp_path / "run")  # with the parity report
    assert json.loads((tmp_path / "run" / "parity.json").read_text())["compared"]
    export.run(tmp_path / "run", tmp_path / "out", format="hf", tokenizer=False)
    again = transformers.AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert isinstance(again, transformers.MetaClip2Model)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=texts, pixel_values=images).text_embeds, expected.text_embeds)
