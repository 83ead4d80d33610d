"""The tokenizer.json in open_clip's directories: its ids are open_clip's, after an import, a move and an export too."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.data.tokenizers import make_tokenizer
from clipjax.interop import open_clip_siglip
from clipjax.interop.foreign import open_foreign
from clipjax.interop.open_clip_siglip import SIZES, TANH
from clipjax.models.presets.bert import BERT_TOWERS
from tests.data.hard_texts import HARD_TEXTS
from tests.interop.test_commands import publish
from tests.interop.test_names import tiny
from tests.parity.test_tokenizers import bert_folder, noise, xlmr_folder  # noqa: F401 (fixtures)
from tests.torch_reference import import_torch

import_torch()
torch = import_torch()
timm = import_torch("timm")
open_clip = import_torch("open_clip")

CONTEXT = 16


def models():
    """family: (a small model, whose tokenizer, what text_cfg says of it)."""
    clip, siglip = tiny("clip_vit_b32"), tiny("siglip_b16")
    bert = replace(BERT_TOWERS["xlm-roberta-base"], vocab_size=500, width=64, depth=1, num_heads=1, mlp_dim=24)
    named = dict(hf_tokenizer_name="somebody/else")
    return {
        "open_clip": (clip, "bert", named | dict(tokenizer_kwargs=dict(strip_sep_token=True))),
        "open_clip_siglip": (siglip, "xlmr", named | dict(tokenizer_kwargs=dict(clean="canonicalize"))),
        "open_clip_hf_text": (replace(clip, text=bert), "xlmr", {}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["open_clip", "open_clip_siglip", "open_clip_hf_text"])
def test_ids_are_open_clip_s_from_every_directory(family, tmp_path, monkeypatch, bert_folder, xlmr_folder):  # noqa: F811
    monkeypatch.setitem(open_clip_siglip.SIZES, "tiny", (16, 2, 2, 24))
    model, whose, said = models()[family]
    model = replace(model, text=replace(model.text, vocab_size=500, context_length=CONTEXT))
    if family == "open_clip_hf_text":
        monkeypatch.setitem(BERT_TOWERS, "xlm-roberta-base", model.text)
    source = publish(tmp_path / "source", family, model=model)
    file = source / "open_clip_config.json"
    document = json.loads(file.read_text())
    document["model_cfg"]["text_cfg"] |= said
    file.write_text(json.dumps(document))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy({"bert": bert_folder, "xlmr": xlmr_folder}[whose] / name, source)
    texts = HARD_TEXTS + noise(200)
    expected = open_clip.get_tokenizer(f"local-dir:{source}")(texts).numpy()
    assert expected.shape == (len(texts), CONTEXT)

    import_weights.run(source, tmp_path / "run", parity=False)
    (tmp_path / "run").rename(tmp_path / "moved")
    export.run(tmp_path / "moved", tmp_path / "out", format="open_clip")
    for name, folder in (("source", source), ("out", tmp_path / "out")):
        config = open_foreign(folder).config
        found = make_tokenizer(config.tokenizer, CONTEXT)(texts)
        wrong = [text for text, a, b in zip(texts, found, expected, strict=True) if (a != b).any()]
        assert not wrong, (name, len(wrong), [ascii(text[:60]) for text in wrong[:3]])
    again = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(texts).numpy()
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("said", [dict(tokenizer_mode="clips"), dict(tokenizer_kwargs=dict(language="de"))])
def test_rules_that_are_not_ours_leave_the_tokenizer_out(said, tmp_path, bert_folder):  # noqa: F811
    source = publish(tmp_path / "source", "open_clip", "clip_vit_b32")
    shutil.copy(bert_folder / "tokenizer.json", source)
    file = source / "open_clip_config.json"
    document = json.loads(file.read_text())
    document["model_cfg"]["text_cfg"] |= dict(hf_tokenizer_name="bert-base-uncased")
    file.write_text(json.dumps(document))
    assert open_foreign(source).config.tokenizer.path
    document["model_cfg"]["text_cfg"] |= said
    file.write_text(json.dumps(document))
    assert not open_foreign(source).config.tokenizer.path


def siglip_trunks():
    names = timm.list_models("vit_*_siglip_*")
    return [name for name in names if open_clip_siglip.NAME.fullmatch(name)]


@pytest.mark.parametrize("name", siglip_trunks())
def test_sizes_and_activations_of_siglip_trunks_are_timm_s(name):
    size, patch, image = open_clip_siglip.NAME.fullmatch(name).groups()
    with torch.device("meta"):
        trunk = timm.create_model(name)
    block = trunk.blocks[0]
    found = (trunk.embed_dim, len(trunk.blocks), block.attn.num_heads, block.mlp.fc1.out_features)
    assert SIZES[size] == found
    assert trunk.patch_embed.patch_size == (int(patch),) * 2 and trunk.patch_embed.img_size == (int(image),) * 2
    assert block.norm1.eps == 1e-6 and type(trunk.attn_pool).__name__ == "AttentionPoolLatent"
    approximate = {
        getattr(module, "approximate", "tanh") for module in trunk.modules() if "GELU" in type(module).__name__
    }
    assert approximate == ({"tanh"} if name in TANH else {"none"})
