"""Ids are those of open_clip and transformers, on texts that tokenizers disagree about."""

import io
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from clipjax.config import TokenizerConfig
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.clean_text import canonicalize, repair
from clipjax.data.tokenizers.clip_bpe import byte_letters, read_openai
from tests.data.hard_texts import HARD_TEXTS, SPECIAL_TEXTS
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import_torch()
open_clip_tokenizer = import_torch("open_clip.tokenizer")
transformers = import_torch("transformers")
tokenizers = pytest.importorskip("tokenizers")
ftfy = pytest.importorskip("ftfy")

BPE_FILE = Path(open_clip_tokenizer.default_bpe())
CORPUS = HARD_TEXTS + ["a photo of a cat", "two blue stars, three red circles"] * 20
# Letters of scripts old enough for every library's table of Unicode, marks, signs, emoji; seeded.
RANGES = [(32, 127), (0xA0, 0x250), (0x300, 0x530), (0x5D0, 0x5EB), (0x620, 0x650), (0x2000, 0x2060), (0x3041, 0x30FF)]
RANGES += [(0x4E00, 0x9000), (0xAC00, 0xD7A4), (0xFB00, 0xFB07), (0xFF01, 0xFF5F), (0x1F300, 0x1F600)]


def noise(count):
    rng = random.Random(0)
    text = lambda: "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randrange(40)))  # noqa: E731
    return [text() for _ in range(count)]


def assert_same(found, expected, texts):
    wrong = [text for text, a, b in zip(texts, found, np.asarray(expected), strict=True) if (a != b).any()]
    assert not wrong, (len(wrong), [ascii(text[:60]) for text in wrong[:3]])


@pytest.mark.slow
def test_clip_bpe_equals_open_clips_simple_tokenizer():
    texts = HARD_TEXTS + noise(3000)
    reference = open_clip_tokenizer.SimpleTokenizer()
    for context in (77, 16):
        found = make_tokenizer(TokenizerConfig(name="clip_bpe", path=str(BPE_FILE)), context)(texts)
        assert_same(found, reference(texts, context).numpy(), texts)


def test_clip_bpe_in_its_own_case_equals_open_clips():
    config = TokenizerConfig(name="clip_bpe", path=str(BPE_FILE), lowercase=False)
    reference = open_clip_tokenizer.SimpleTokenizer(clean="whitespace")
    # Its pattern ignores case and so splits off 'S as well; clitics in capitals are the one difference.
    texts = [text for text in HARD_TEXTS if "'RE" not in text]
    assert_same(make_tokenizer(config, 77)(texts), reference(texts).numpy(), texts)


def test_repair_equals_open_clips_cleaning():
    assert all(repair(text) == open_clip_tokenizer._clean_whitespace(text) for text in HARD_TEXTS + noise(2000))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """transformers' files of the same vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    vocab, merges = read_openai(BPE_FILE)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps({names.get(k, k): v for k, v in vocab.items()}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return folder


@pytest.mark.parametrize("pad", [None, "!"])
def test_clip_bpe_and_hf_equal_transformers_clip_tokenizer(clip_folder, tmp_path, pad):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path, **({"pad_token": pad} if pad else {}))
    texts = HARD_TEXTS + noise(1000)
    expected = reference(texts, padding="max_length", truncation=True, max_length=77).input_ids
    if pad:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    found = make_tokenizer(TokenizerConfig(name="clip_bpe", path=str(tmp_path)), 77)
    assert found.pad_id == (0 if pad else found.eos_id)
    # transformers reads every "!" of a caption as that padding; clip_bpe, like open_clip, as a mark of exclamation.
    same = [i for i, text in enumerate(texts) if not (pad and pad in text)]
    assert len(same) > 700
    assert_same(found([texts[i] for i in same]), [expected[i] for i in same], [texts[i] for i in same])
    (tmp_path / "all").mkdir()
    reference.save_pretrained(tmp_path / "all")
    assert_same(make_tokenizer(TokenizerConfig(name="hf", path=str(tmp_path / "all")), 77)(texts), expected, texts)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A small model with the ids of SigLIP's: pad 0 (unused), EOS 1, unknown 2, no BOS."""
    model, path = io.BytesIO(), tmp_path_factory.mktemp("spm") / "spiece.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in CORPUS if "\x01" not in text]),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def test_sentencepiece_equals_transformers_siglip_tokenizer(spiece):
    reference = transformers.SiglipTokenizer(str(spiece))
    config = TokenizerConfig(path=str(spiece), canonicalize=True, drop_underscore=True, pad_id=1)
    # The original makes a space of SentencePiece's own mark. One letter hundreds of times over can be cut in ways of
    # equal score, and which is found depends on the "<unk>" that the original puts in front and takes away.
    texts = [text.replace("\u2581", " ") for text in HARD_TEXTS + noise(500) if len(set(text)) > 1 or len(text) < 100]
    for context in (64, 16):
        expected = reference(texts, padding="max_length", truncation=True, max_length=context).input_ids
        assert_same(make_tokenizer(config, context)(texts), expected, texts)


def test_canonical_text_equals_open_clips():
    texts = HARD_TEXTS + noise(1000)
    assert all(canonicalize(text).lower() == open_clip_tokenizer.canonicalize_text(text) for text in texts)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    letters = sorted(set("".join(CORPUS).lower()) - set(" \t\n"))
    words = ["a", "photo", "of", "dog", "the", "##s", "##ing", "cat", "beach", "small", "cafe", "naive"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *words, *(f"##{c}" for c in letters)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    transformers.BertTokenizerFast(vocab=vocab, do_lower_case=True).save_pretrained(folder)
    return folder


def test_hf_equals_transformers_bert_tokenizer(bert_folder):
    reference = transformers.BertTokenizerFast.from_pretrained(bert_folder)
    texts = HARD_TEXTS + noise(1000)
    found = make_tokenizer(TokenizerConfig(name="hf", path=str(bert_folder)), 64)
    assert (found.pad_id, found.eos_id) == (0, 3)
    expected = reference(texts, padding="max_length", truncation=True, max_length=64).input_ids
    assert (np.array(expected) > 4).sum() > 1500, "words, not unknowns, are compared"
    assert_same(found(texts), expected, texts)


def test_hf_with_clean_and_eos_to_pad_equals_open_clips_tokenizer_of_clipa(bert_folder):
    reference = open_clip_tokenizer.HFTokenizer(str(bert_folder), context_length=32, strip_sep_token=True)
    config = TokenizerConfig(name="hf", path=str(bert_folder), clean=True, eos_to_pad=True)
    texts = HARD_TEXTS + noise(500)
    assert_same(make_tokenizer(config, 32)(texts), reference(texts).numpy(), texts)


def test_hf_equals_transformers_siglip2_tokenizer(tmp_path):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    own = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    own.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, special_tokens=special + bytes_, show_progress=False)
    own.train_from_iterator([text.lower() for text in CORPUS], trainer)
    model = json.loads(own.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    reference = transformers.Siglip2Tokenizer(vocab, merges, add_bos_token=False, add_eos_token=True)
    reference.padding_side = "right"
    texts = HARD_TEXTS + noise(500)
    expected = reference(texts, padding="max_length", truncation=True, max_length=64).input_ids
    reference.save_pretrained(tmp_path)
    # The published file is Gemma's: it lowers nothing and puts <bos> in front.
    gemma = json.loads((tmp_path / "tokenizer.json").read_text())
    gemma["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    gemma["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(gemma))
    config = TokenizerConfig(name="hf", path=str(tmp_path), lowercase=True, add_bos=False, add_eos=True)
    found = make_tokenizer(config, 64)
    assert (found.pad_id, found.eos_id) == (0, 1)
    assert_same(found(texts), expected, texts)


@pytest.fixture(scope="module")
def xlmr_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xlmr")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    own = tokenizers.Tokenizer(tokenizers.models.Unigram())
    own.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=400, special_tokens=[*special, "<mask>"], unk_token="<unk>", show_progress=False
    )
    own.train_from_iterator(CORPUS, trainer)
    vocab = [tuple(piece) for piece in json.loads(own.to_str())["model"]["vocab"]]
    transformers.XLMRobertaTokenizer(vocab=vocab).save_pretrained(folder)
    return folder


def test_hf_equals_transformers_xlm_roberta_tokenizer(xlmr_folder):
    reference = transformers.XLMRobertaTokenizer.from_pretrained(xlmr_folder)
    texts = HARD_TEXTS + noise(500)
    found = make_tokenizer(TokenizerConfig(name="hf", path=str(xlmr_folder)), 48)
    assert (found.pad_id, found.eos_id) == (1, 2)
    assert_same(found(texts), reference(texts, padding="max_length", truncation=True, max_length=48).input_ids, texts)


def test_special_tokens_written_out_in_a_caption_are_text(clip_folder, bert_folder, xlmr_folder, spiece):
    """The one deliberate difference: the originals read them as the end of the text."""
    configs = [
        (TokenizerConfig(name="clip_bpe", path=str(BPE_FILE)), {49406, 49407}),
        (TokenizerConfig(name="clip_bpe", path=str(clip_folder)), {49406, 49407}),
        (TokenizerConfig(name="hf", path=str(bert_folder)), set(range(5)) - {1}),
        (TokenizerConfig(name="hf", path=str(xlmr_folder)), {0, 1, 2, 4}),
        (TokenizerConfig(path=str(spiece)), {0, 1}),
    ]
    for config, special in configs:
        tokenizer = make_tokenizer(config, 77)
        plain = [[i for i in row.tolist() if i in special] for row in tokenizer(["a dog", "a"])]
        for row in tokenizer(SPECIAL_TEXTS):
            inside = row.tolist()
            while inside and inside[-1] == tokenizer.pad_id:
                inside.pop()
            assert sum(i in special for i in inside) <= len({*plain[0]} - {tokenizer.pad_id}) + 1, config
            assert tokenizer.eos_id not in inside[:-1], config
    assert 49407 in open_clip_tokenizer.SimpleTokenizer()(SPECIAL_TEXTS[0])[0].tolist()[:5]


def test_byte_letters_are_open_clips():
    assert byte_letters() == list(open_clip_tokenizer.bytes_to_unicode().values())
