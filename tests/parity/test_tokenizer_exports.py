"""An exported tokenizer gives clipjax's own ids in transformers' AutoTokenizer and open_clip's get_tokenizer; one that
would not is refused before anything is written."""

import io
import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece

from clipjax.config import TokenizerConfig
from clipjax.data.tokenizers import make_tokenizer
from clipjax.interop import hf_siglip, open_clip_siglip
from clipjax.interop.families import FAMILIES
from clipjax.interop.foreign import open_foreign, read_meaning
from clipjax.interop.names import Description, InteropError, Meaning
from clipjax.interop.source import open_weights
from clipjax.interop.tokenizer_export import plan_tokenizer
from tests.data.hard_texts import HARD_TEXTS
from tests.interop.test_commands import publish
from tests.interop.test_names import tiny
from tests.parity.test_tokenizers import BPE_FILE, CORPUS, bert_folder, clip_folder, noise  # noqa: F401 (fixtures)
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import_torch()
open_clip = import_torch("open_clip")
transformers = import_torch("transformers")
pytest.importorskip("ftfy")

PRESETS = {
    "hf_siglip2": "siglip2_naflex_b16",
    "hf_clip": "clip_vit_b32",
    "hf_siglip": "siglip_b16",
    "open_clip": "clip_vit_b32",
    "open_clip_siglip": "siglip_b16",
}
# One letter hundreds of times over can be cut in ways of equal score.
TEXTS = [text for text in HARD_TEXTS if len(set(text)) > 1 or len(text) < 100]
# Marks whose order or whose base NFKC changes, and SentencePiece does not: see docs/tokenizers.md.
TEXTS += [text for i, text in enumerate(noise(150)) if i != 25]


@pytest.fixture(autouse=True)
def tiny_towers(monkeypatch):
    monkeypatch.setitem(open_clip_siglip.SIZES, "tiny", (16, 2, 2, 24))


def train(path, kind, **options):
    content = io.BytesIO()
    options = dict(vocab_size=420, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1) | options
    sentences = iter([text for text in CORPUS if "\x01" not in text])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=content, model_type=kind, minloglevel=2, **options
    )
    path.write_bytes(content.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "unigram": train(folder / "unigram.model", "unigram"),
        "bpe": train(folder / "scenes.model", "bpe", bos_id=3),
        "identity": train(
            folder / "gemma.model", "bpe", normalization_rule_name="identity", byte_fallback=True, vocab_size=800
        ),
    }


def published(folder, family, length):
    """An exported directory without a tokenizer; its context length."""
    model = tiny(PRESETS[family])
    return publish(
        folder, family, model=replace(model, text=replace(model.text, vocab_size=49408, context_length=length))
    )


def export(folder, family, config, length=24):
    """Writes the tokenizer as an export does. Returns ours."""
    published(folder, family, length)
    row = FAMILIES[family]
    planned = plan_tokenizer(row.format, family, config, length)
    planned.write(folder)
    model = tiny(PRESETS[family])
    model = replace(model, text=replace(model.text, vocab_size=49408, context_length=length))
    for name, content in row.write(Meaning(model, row.pixels, planned.described)).items():
        (folder / name).write_text(json.dumps(content))
    return make_tokenizer(config, length)


def read_by_transformers(folder, texts, length):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return np.array(tokenizer(texts, padding="max_length", truncation=True, max_length=length).input_ids)


def read_by_open_clip(folder, texts, length):
    return open_clip.get_tokenizer(f"local-dir:{folder}")(texts).numpy()


READERS = {"hf": read_by_transformers, "open_clip": read_by_open_clip}


def assert_ids_are_ours(folder, family, ours, texts=TEXTS, length=24):
    expected = ours(texts)
    for name, found in (
        ("theirs", READERS[FAMILIES[family].format](folder, texts, length)),
        ("imported again", make_tokenizer(imported(folder, family), length)(texts)),
    ):
        wrong = [text for text, a, b in zip(texts, found, expected, strict=True) if (a != b).any()]
        assert not wrong, (name, len(wrong), [ascii(text[:60]) for text in wrong[:3]])


def imported(folder, family):
    config = read_meaning(open_weights(folder), family, FAMILIES[family]).tokenizer
    assert config.path
    return replace(config, path=str(folder / config.path))


SPM = {
    "as a run trains": {},
    "SigLIP's": dict(canonicalize=True, drop_underscore=True, pad_id=1),
    "in its own case": dict(lowercase=False, pad_id=1),
    "big_vision's prompts": dict(canonicalize=True, pad_id=1),
    "no end": dict(add_eos=False),
    "end as padding": dict(eos_to_pad=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["hf_clip", "hf_siglip"])
@pytest.mark.parametrize("rules", SPM)
def test_sentencepiece_gives_its_ids_in_transformers(rules, family, models, tmp_path):
    config = TokenizerConfig(path=models["bpe" if family == "hf_clip" else "unigram"], **SPM[rules])
    ours = export(tmp_path / "out", family, config)
    # SiglipTokenizer makes a space of SentencePiece's own mark.
    texts = [text.replace("\u2581", " ") for text in TEXTS] if rules == "SigLIP's" else TEXTS
    assert_ids_are_ours(tmp_path / "out", family, ours, texts)
    assert len(np.unique(read_by_transformers(tmp_path / "out", ["a photo of two blue stars"], 24))) > 4


@pytest.mark.slow
def test_a_beginning_of_text_and_bytes_for_unknown_letters_go_along(models, tmp_path):
    for name, options in (("bpe", dict(add_bos=True)), ("identity", {})):
        ours = export(tmp_path / name, "hf_clip", TokenizerConfig(path=models[name], **options))
        assert_ids_are_ours(tmp_path / name, "hf_clip", ours)


@pytest.mark.slow
def test_sentencepiece_gives_its_ids_in_open_clip_where_it_repairs_texts_as_open_clip_does(models, tmp_path):
    for number, rules in enumerate(({}, dict(canonicalize=True, pad_id=1), dict(lowercase=False))):
        for family in ("open_clip", "open_clip_siglip"):
            out = tmp_path / f"{family}{number}"
            ours = export(out, family, TokenizerConfig(path=models["bpe"], clean=True, **rules))
            assert_ids_are_ours(out, family, ours)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["hf_clip", "hf_siglip"])
@pytest.mark.parametrize(
    "rules", [{}, dict(lowercase=False), dict(pad_id=0), dict(canonicalize=True), dict(add_bos=False)]
)
def test_clip_s_bpe_gives_its_ids_in_transformers(rules, family, clip_folder, tmp_path):  # noqa: F811
    config = TokenizerConfig(name="clip_bpe", path=str(clip_folder), **rules)
    assert_ids_are_ours(tmp_path / "out", family, export(tmp_path / "out", family, config))
    unclean = TokenizerConfig(name="clip_bpe", path=str(BPE_FILE), clean=False, **rules)
    assert_ids_are_ours(tmp_path / "file", family, export(tmp_path / "file", family, unclean))


@pytest.mark.slow
def test_openai_s_vocabulary_gives_its_ids_in_open_clip(tmp_path):
    ours = export(tmp_path / "out", "open_clip", TokenizerConfig(name="clip_bpe", path=str(BPE_FILE)))
    assert_ids_are_ours(tmp_path / "out", "open_clip", ours)


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_tokenizer_json_gives_its_ids(named, bert_folder, tmp_path):  # noqa: F811
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json")[: 1 + named]:
        (source / name).write_bytes((bert_folder / name).read_bytes())
    path = str(source / "tokenizer.json")
    cases = {
        "hf_clip": [{}, dict(canonicalize=True), dict(lowercase=True), dict(add_bos=False, add_eos=True)],
        "open_clip": [dict(clean=True), dict(clean=True, canonicalize=True, lowercase=True)],
    }
    cases["open_clip"] += [dict(clean=True, canonicalize=True), dict(clean=True, add_bos=True, add_eos=False)]
    cases["open_clip"] += [dict(clean=True, eos_to_pad=True)] if named else []
    for family, several in cases.items():
        for number, rules in enumerate(several):
            out = tmp_path / f"{family}{number}"
            ours = export(out, family, TokenizerConfig(name="hf", path=path, **rules))
            assert_ids_are_ours(out, family, ours)


def test_what_would_have_other_ids_is_refused(models, clip_folder, bert_folder, tmp_path):  # noqa: F811
    spm, folder = TokenizerConfig(path=models["bpe"]), TokenizerConfig(name="clip_bpe", path=str(clip_folder))
    openai, bert = (
        replace(folder, path=str(BPE_FILE)),
        TokenizerConfig(name="hf", path=str(bert_folder / "tokenizer.json")),
    )
    other = tmp_path / "bpe.txt"
    other.write_text("header\na b\nb c\n")
    folded = TokenizerConfig(path=train(tmp_path / "folded.model", "bpe", normalization_rule_name="nmt_nfkc_cf"))
    symbols = TokenizerConfig(path=train(tmp_path / "symbols.model", "bpe", user_defined_symbols=["<sep>"]))
    refused = [
        ("hf", "hf_clip", openai, "cannot express config.tokenizer.clean, which repairs"),
        ("hf", "hf_clip", replace(spm, clean=True), "cannot express config.tokenizer.clean, which repairs"),
        ("hf", "hf_clip", replace(bert, eos_to_pad=True), "tokenizer.json itself adds the end of text"),
        ("hf", "hf_clip", replace(folded, lowercase=False), "normalisation that a tokenizer.json cannot express"),
        ("hf", "hf_clip", symbols, "symbols defined by the user, such as .'<sep>'"),
        ("hf", "hf_siglip2", spm, "Siglip2Tokenizer"),
        ("hf", "hf_siglip2", bert, "Siglip2Tokenizer"),
        ("hf", "hf_clip", replace(spm, path=str(tmp_path / "none.model")), "is not a file"),
        ("open_clip", "open_clip", spm, "open_clip repairs wrong encodings"),
        ("open_clip", "open_clip", folder, "open_clip repairs wrong encodings"),
        ("open_clip", "open_clip", bert, "open_clip repairs wrong encodings"),
        ("openai", "openai", spm, "OpenAI's vocabulary and no other"),
        ("openai", "openai", replace(openai, path=str(other)), "OpenAI's vocabulary and no other"),
        ("eva_clip", "eva_clip", bert, "OpenAI's vocabulary and no other"),
        ("big_vision", "big_vision", openai, "big_vision reads SentencePiece models"),
    ]
    for format, family, config, message in refused:
        with pytest.raises(InteropError, match=f"Format '{format}' cannot hold this run's tokenizer.*{message}"):
            plan_tokenizer(format, family, config, 24)
    assert "--notokenizer" in str(pytest.raises(InteropError, plan_tokenizer, "open_clip", "open_clip", spm, 24).value)


def gemma_s(folder, **settings):
    """A small tokenizer.json of Gemma's kind: pad 0, EOS 1, BOS 2, pieces as far as letters, nothing added."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(set("".join(CORPUS).lower()) - set(" ")) + ["\u2581"]
    vocabulary = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters])
    vocabulary = {piece: i for i, piece in enumerate([*vocabulary, "\u2581a", "do", "dog"])}
    model = tokenizers.models.BPE(
        vocabulary, [("\u2581", "a"), ("d", "o"), ("do", "g")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    pipeline = tokenizers.Tokenizer(model)
    pipeline.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    pipeline.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


GEMMA = TokenizerConfig(name="hf", path="tokenizer.json", lowercase=True, add_bos=False, add_eos=True)
SIGLIP = dict(canonicalize=True, drop_underscore=True)


@pytest.mark.parametrize(
    ("files", "settings", "expected"),
    [
        (["tokenizer.json"], dict(tokenizer_class="GemmaTokenizer", add_eos_token=True), GEMMA),
        (
            ["tokenizer.json"],
            dict(tokenizer_class="GemmaTokenizerFast", add_bos_token=True),
            replace(GEMMA, add_bos=True),
        ),
        (["tokenizer.json", "spiece.model"], dict(tokenizer_class="Siglip2Tokenizer"), GEMMA),
        (["tokenizer.json"], {}, GEMMA),
        (
            ["tokenizer.model"],
            {},
            TokenizerConfig(path="tokenizer.model", lowercase=True, add_bos=False, add_eos=True, pad_id=0),
        ),
        (
            ["spiece.model", "tokenizer.json"],
            {},
            TokenizerConfig(path="spiece.model", lowercase=True, pad_id=1, **SIGLIP),
        ),
        (
            ["spiece.model"],
            dict(do_lower_case=False),
            TokenizerConfig(path="spiece.model", lowercase=False, pad_id=1, **SIGLIP),
        ),
        (["spiece.model"], dict(pad_token="<pad>"), TokenizerConfig(path="spiece.model", lowercase=True, **SIGLIP)),
        (["tokenizer.json"], dict(tokenizer_class="T5Tokenizer"), replace(GEMMA, pad_id=1, **SIGLIP)),
        (
            ["tokenizer.json"],
            dict(tokenizer_class="PreTrainedTokenizerFast"),
            TokenizerConfig(name="hf", path="tokenizer.json"),
        ),
    ],
)
def test_siglip_and_siglip_2_of_a_fixed_resolution_get_the_rules_of_their_files(files, settings, expected):
    described = Description({"tokenizer_config.json": settings} if settings else {}, {}, frozenset(files))
    assert hf_siglip.tokenizer(described, vocab_size=500) == expected


def test_siglip_2_s_tokenizer_goes_out_to_both_families(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    gemma_s(source, tokenizer_class="GemmaTokenizer", eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
    config = replace(GEMMA, path=str(source / "tokenizer.json"))
    for family in ("hf_siglip", "hf_siglip2"):
        ours = export(tmp_path / family, family, config)
        assert_ids_are_ours(tmp_path / family, family, ours)


@pytest.mark.parametrize("file", ["tokenizer_gemma.json", "spm.model", None])
def test_weights_without_a_tokenizer_say_so_and_which_files_there_are(file, tmp_path, caplog):
    folder = published(tmp_path / "source", "hf_siglip", 16)
    if file:
        (folder / file).write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert not open_foreign(str(folder)).config.tokenizer.path
    assert "NO TOKENIZER was found for" in caplog.text and (file or "model.safetensors") in caplog.text
