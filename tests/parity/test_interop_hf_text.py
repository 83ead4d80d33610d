"""open_clip's models whose text tower is transformers': imported they compute the same, exported they are equal."""

import json
import math
import os
from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import MeshConfig
from clipjax.interop import open_clip_bert
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import InteropError, flatten, their_shapes
from clipjax.interop.open_clip_bert import hub_config
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from clipjax.models.presets import get_preset
from clipjax.models.presets.bert import BERT_TOWERS
from tests.parity.test_interop_open_clip import EMBED, config_of
from tests.parity.torch_pairs import CONTEXT, VOCAB, as_torch, inputs, perturb, shapes_of
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
open_clip = import_torch("open_clip")

# hf_model_name: the type of its configuration, and what open_clip makes of its tokens
MODELS = {
    "xlm-roberta-base": dict(hf_pooler_type="mean_pooler"),
    "bert-base-uncased": dict(hf_pooler_type="cls_pooler", hf_proj_type="linear"),
    "roberta-base": dict(hf_pooler_type="cls_last_hidden_state_pooler", hf_proj_type="linear"),
}


@pytest.fixture(autouse=True)
def small_hub(monkeypatch):
    """The hub's models in small, on our side and where open_clip asks transformers for their configuration."""
    small = dict(num_positions=20, width=128, depth=2, num_heads=2, mlp_dim=48)
    for i, name in enumerate(MODELS):  # vocabularies tell them apart, as they do the published ones
        monkeypatch.setitem(BERT_TOWERS, name, replace(BERT_TOWERS[name], vocab_size=VOCAB + i, **small))
    theirs = transformers.AutoConfig.from_pretrained

    def from_pretrained(name):
        if name not in MODELS:
            return theirs(name)
        kind = name.partition("-base")[0]
        sizes = hub_config(BERT_TOWERS[name]) | dict(model_type=kind)
        return transformers.AutoConfig.for_model(**sizes)

    monkeypatch.setattr(open_clip.hf_model.AutoConfig, "from_pretrained", from_pretrained)


def saved(name, path):
    """What open_clip makes of the name, and its directory as open_clip publishes one."""
    document = config_of(quick_gelu=name == "roberta-base")
    text = dict(hf_model_name=name, hf_model_pretrained=False, context_length=CONTEXT, **MODELS[name])
    model = open_clip.CustomTextCLIP(EMBED, document["vision_cfg"], text, quick_gelu=document["quick_gelu"])
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": document | dict(text_cfg=text)}))
    torch.save(perturb(model).state_dict(), path / "open_clip_pytorch_model.bin")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_equal_open_clip_s_and_the_weights_go_back_bit_for_bit(name, tmp_path):
    theirs = saved(name, tmp_path / "original")
    image, text = inputs()
    text[text == 0] = BERT_TOWERS[name].pad_id
    foreign = open_foreign(tmp_path / "original")
    assert foreign.name == "open_clip_hf_text"
    variables = foreign.variables(make_mesh(MeshConfig(), jax.devices()[:1]))
    out = jax.jit(DualEncoder(foreign.config.model).apply)(variables, image=image, text=text)
    images, texts = as_torch(image, text)
    with torch.no_grad():
        expected = theirs.encode_image(images, normalize=True), theirs.encode_text(texts, normalize=True)
    for found, wanted in zip((out.image_embedding, out.text_embedding), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)

    import_weights.run(tmp_path / "original", tmp_path / "run", parity=False)
    export.run(tmp_path / "run", tmp_path / "out", format="open_clip")
    written = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    assert written["text_cfg"]["hf_model_name"] == name
    again = open_clip.create_model(f"local-dir:{tmp_path / 'out'}", load_weights=False, pretrained_text=False)
    open_clip.load_checkpoint(again, str(tmp_path / "out" / "open_clip_model.safetensors"), strict=True)
    assert again.state_dict().keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    with torch.no_grad():  # what the written configuration says, and not only its shapes
        again = again.eval()
        assert torch.equal(again.encode_image(images, normalize=True), expected[0])
        assert torch.equal(again.encode_text(texts, normalize=True), expected[1])


def test_the_parity_report_asks_no_hub(tmp_path, monkeypatch):
    """open_clip builds the original from what the tensors say, whatever the hub's model of that name is."""
    saved("bert-base-uncased", tmp_path / "original")
    monkeypatch.setitem(BERT_TOWERS, "bert-base-uncased", BERT_TOWERS["roberta-base"])
    small = dict(pad_id=0, positions_after_padding=False, norm_eps=1e-12)
    monkeypatch.setitem(BERT_TOWERS, "bert-base-uncased", replace(BERT_TOWERS["bert-base-uncased"], **small))
    import_weights.run(tmp_path / "original", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "parity.json").read_text())
    assert report["compared"] and all(errors["max_abs_error"] < 2e-5 for errors in report["outputs"].values())


def test_a_tower_that_has_no_name_on_the_hub_is_refused(tmp_path, monkeypatch):
    saved("bert-base-uncased", tmp_path / "original")
    import_weights.run(tmp_path / "original", tmp_path / "run", parity=False)
    monkeypatch.setitem(
        BERT_TOWERS, "bert-base-uncased", replace(BERT_TOWERS["bert-base-uncased"], vocab_size=VOCAB + 9)
    )
    with pytest.raises(InteropError, match="a model on the hub, and config.model.text is none of bert-base-uncased"):
        export.run(tmp_path / "run", tmp_path / "out", format="open_clip")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "original", "hub"),
    [
        ("open_clip_roberta_vit_b32", "roberta-ViT-B-32", "roberta-base"),
        ("open_clip_xlm_roberta_base_vit_b32", "xlm-roberta-base-ViT-B-32", "xlm-roberta-base"),
        ("open_clip_xlm_roberta_large_vit_h14", "xlm-roberta-large-ViT-H-14", "xlm-roberta-large"),
    ],
)
def test_presets_have_the_tensors_of_open_clip_s_models(name, original, hub, monkeypatch):
    """open_clip's own configuration over transformers' of the published sizes, which 1911.02116 and 1907.11692 give."""
    monkeypatch.undo()
    model, config = get_preset(name), open_clip.get_model_config(original)
    assert config["text_cfg"]["hf_model_name"] == hub
    large = "large" in hub
    published = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    vocab = 250_002 if hub.startswith("xlm") else 50_265
    sizes = dict(vocab_size=vocab, max_position_embeddings=514, type_vocab_size=1, **(published if large else {}))
    monkeypatch.setattr(
        open_clip.hf_model.AutoConfig, "from_pretrained", lambda _: transformers.XLMRobertaConfig(**sizes)
    )
    config["text_cfg"]["hf_model_pretrained"] = False
    with torch.device("meta"):
        clip = open_clip.model.CustomTextCLIP(**config)
    expected = their_shapes(open_clip_bert.tensors(model), model, flatten(shapes_of(model)))
    assert expected == {n: tuple(p.shape) for n, p in clip.named_parameters()}
    assert (model.image.activation == "quick_gelu") == config.get("quick_gelu", False)
    assert model.image.num_heads == clip.visual.transformer.resblocks[0].attn.num_heads
    millions = {"roberta-base": 124.6, "xlm-roberta-base": 278.0, "xlm-roberta-large": 559.9}[hub]  # their model cards
    tower = {n: s for n, s in expected.items() if n.startswith("text.transformer.")}
    # Without BERT's pooler, which open_clip leaves out.
    pooler = model.text.width * (model.text.width + 1)
    assert (sum(map(math.prod, tower.values())) + pooler) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    "option", [dict(hf_model_name="google/mt5-base"), dict(hf_pooler_type="max_pooler"), dict(hf_proj_type="conv")]
)
def test_what_is_not_computed_is_refused_by_name(option, tmp_path):
    saved("bert-base-uncased", tmp_path / "original")
    file = tmp_path / "original" / "open_clip_config.json"
    document = json.loads(file.read_text())
    document["model_cfg"]["text_cfg"] |= option
    file.write_text(json.dumps(document))
    with pytest.raises(InteropError, match=next(iter(option))):
        open_foreign(tmp_path / "original")
