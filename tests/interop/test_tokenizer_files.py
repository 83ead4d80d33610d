"""A tokenizer beside weights comes along: into the imported directory, into clipjax.load, and out again."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

import clipjax
from clipjax.commands import export, import_weights
from clipjax.config import ConfigError, TokenizerConfig
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.train import train_sentencepiece
from clipjax.interop.big_vision import PIXELS
from clipjax.interop.families import FAMILIES
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import Meaning
from clipjax.interop.tokenizer_export import plan_tokenizer
from tests.data.test_tokenizers import MERGES, byte_letters
from tests.interop.test_commands import publish, random_file, tiny

tokenizers = pytest.importorskip("tokenizers")
TEXTS = ["a dog", "A  CAT", ""]


def clip_vocabulary(folder):
    letters = list(byte_letters())
    pieces = letters + [f"{letter}</w>" for letter in letters] + [merge.replace(" ", "") for merge in MERGES]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return len(pieces)


def words_json(folder):
    model = tokenizers.models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2, "dog": 3, "cat": 4}, unk_token="[UNK]")
    pipeline = tokenizers.Tokenizer(model)
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pipeline.normalizer = tokenizers.normalizers.Lowercase()
    pipeline.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    pipeline.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return pipeline.get_vocab_size()


def test_a_missing_library_is_told_and_the_format_is_not_blamed(tmp_path, monkeypatch):
    clip_vocabulary(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError) as error:
        plan_tokenizer("hf", "hf_clip", TokenizerConfig(name="clip_bpe", path=str(tmp_path)), 77)
    assert str(error.value).startswith("config.tokenizer.name='hf' and 'clip_bpe' need the library tokenizers")
    assert "cannot hold" not in str(error.value) and not str(error.value).endswith("..")


def test_big_visions_files_bring_the_tokenizer_that_was_exported_with_them(tmp_path, capsys, caplog):
    content = train_sentencepiece([f"a drawing of {n} dogs and a cat" for n in range(40)], 40)
    (tmp_path / "m_photos.model").write_bytes(content)
    options = TokenizerConfig(path=str(tmp_path / "m_photos.model"), lowercase=True, canonicalize=True, pad_id=0)
    model = tiny("siglip_b16")
    length = model.text.context_length
    ids = make_tokenizer(options, length)(TEXTS)
    source = tmp_path / "exported"
    source.mkdir()
    arrays = random_file("big_vision", model)
    np.savez(source / "checkpoint.npz", **arrays)
    import_weights.run(str(source), tmp_path / "without", parity=False)
    assert capsys.readouterr().out.count("NO TOKENIZER") == 1 and "NO TOKENIZER" not in caplog.text
    plan_tokenizer("big_vision", "big_vision", options, length).write(source)
    for name, content in FAMILIES["big_vision"].write(Meaning(model, PIXELS, options)).items():
        (source / name).write_text(json.dumps(content))
    foreign = open_foreign(str(source))
    assert foreign.config.tokenizer == replace(options, path=str(source / "m_photos.model"))
    np.testing.assert_array_equal(make_tokenizer(foreign.config.tokenizer, length)(TEXTS), ids)


@pytest.mark.parametrize("kind", ["clip_bpe", "hf"])
@pytest.mark.slow
def test_strings_are_embedded_as_their_ids_from_every_directory(kind, tmp_path):
    model = tiny("clip_vit_b32")
    scratch = tmp_path / "vocabulary"
    scratch.mkdir()
    size = {"clip_bpe": clip_vocabulary, "hf": words_json}[kind](scratch)
    eos = -1 if kind == "clip_bpe" else 1
    model = replace(model, text=replace(model.text, vocab_size=size, eos_id=eos))
    source = publish(tmp_path / "source", "hf_clip", model=model)
    for file in scratch.iterdir():
        shutil.copy(file, source)
    import_weights.run(source, tmp_path / "run", parity=False)
    export.run(tmp_path / "run", tmp_path / "out", format="hf")
    shutil.rmtree(source)
    (tmp_path / "run").rename(tmp_path / "elsewhere")  # and nothing in it says where it was
    assert json.loads((tmp_path / "elsewhere" / "config.json").read_text())["tokenizer"]["path"] in (
        ".",
        "tokenizer.json",
    )
    run, out = clipjax.load(tmp_path / "elsewhere"), clipjax.load(tmp_path / "out")
    assert run.config.tokenizer.name == out.config.tokenizer.name == kind
    ids = run.tokenizer(TEXTS)
    if kind == "hf":
        assert ids[:, :3].tolist() == [[2, 3, 1], [2, 4, 1], [1, 1, 1]]
    np.testing.assert_array_equal(out.tokenizer(TEXTS), ids)
    np.testing.assert_array_equal(run.embed_texts(TEXTS), run.embed_texts(ids))
    np.testing.assert_array_equal(out.embed_texts(TEXTS), run.embed_texts(TEXTS))
