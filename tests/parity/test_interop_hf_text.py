"""open_clip's models whose text tower is transformers': read from open_clip's directories, they compute the same."""

import json
import os

import jax
import numpy as np
import pytest

from clipjax.config import MeshConfig
from clipjax.interop import export, import_weights
from clipjax.interop.foreign import load_variables, open_foreign
from clipjax.interop.names import InteropError
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from tests.parity.test_interop_open_clip import EMBED, config_of
from tests.parity.torch_pairs import CONTEXT, VOCAB, as_torch, inputs, perturb
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
open_clip = import_torch("open_clip")

SIZES = dict(
    vocab_size=VOCAB, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=20,
)  # fmt: skip
# hf_model_name: its configuration in small, and what open_clip makes of its tokens
MODELS = {
    "xlm-roberta-base": (
        transformers.XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5),
        dict(hf_pooler_type="mean_pooler"),
    ),
    "bert-base-uncased": (
        transformers.BertConfig(**SIZES, pad_token_id=0),
        dict(hf_pooler_type="cls_pooler", hf_proj_type="linear"),
    ),
    "roberta-base": (
        transformers.RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5),
        dict(hf_pooler_type="cls_last_hidden_state_pooler", hf_proj_type="linear"),
    ),
}


def saved(name, path, monkeypatch):
    """What open_clip makes of the name, with the small configuration where the hub would be asked for its own."""
    config, options = MODELS[name]
    monkeypatch.setattr(open_clip.hf_model.AutoConfig, "from_pretrained", lambda _: config)
    document = config_of()
    text = dict(hf_model_name=name, context_length=CONTEXT, **options)
    model = open_clip.CustomTextCLIP(EMBED, document["vision_cfg"], text | dict(hf_model_pretrained=False))
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": document | dict(text_cfg=text)}))
    torch.save(perturb(model).state_dict(), path / "open_clip_pytorch_model.bin")
    return model, config.pad_token_id


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_equal_open_clip_s(name, tmp_path, monkeypatch):
    theirs, pad_id = saved(name, tmp_path / "original", monkeypatch)
    image, text = inputs()
    text[text == 0] = pad_id
    foreign = open_foreign(tmp_path / "original")
    assert foreign.name == "open_clip_hf_text"
    variables = load_variables(foreign, make_mesh(MeshConfig(), jax.devices()[:1]))
    out = jax.jit(DualEncoder(foreign.config.model).apply)(variables, image=image, text=text)
    images, texts = as_torch(image, text)
    with torch.no_grad():
        expected = theirs.encode_image(images, normalize=True), theirs.encode_text(texts, normalize=True)
    for found, wanted in zip((out.image_embedding, out.text_embedding), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_an_import_is_whole_and_an_export_refused(tmp_path, monkeypatch):
    saved("bert-base-uncased", tmp_path / "original", monkeypatch)
    import_weights.run(tmp_path / "original", tmp_path / "run")
    assert not json.loads((tmp_path / "run" / "parity.json").read_text())["compared"]
    with pytest.raises(InteropError, match="text/"):
        export.run(tmp_path / "run", tmp_path / "out", format="open_clip")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [dict(hf_model_name="google/mt5-base"), dict(hf_pooler_type="max_pooler"), dict(hf_proj_type="conv")]
)
def test_what_is_not_computed_is_refused_by_name(option, tmp_path, monkeypatch):
    saved("bert-base-uncased", tmp_path / "original", monkeypatch)
    file = tmp_path / "original" / "open_clip_config.json"
    document = json.loads(file.read_text())
    document["model_cfg"]["text_cfg"] |= option
    file.write_text(json.dumps(document))
    with pytest.raises(InteropError, match=next(iter(option))):
        open_foreign(tmp_path / "original")
