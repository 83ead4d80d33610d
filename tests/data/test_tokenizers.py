"""CLIP's BPE and tokenizer.json keep their contract: fixed length, the end kept, padding, errors that name the file."""

import gzip
import html
import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.config import ConfigError, TokenizerConfig
from clipjax.data.tokenizers import clean_text, make_tokenizer
from clipjax.data.tokenizers.clean_text import make_clean, repair
from clipjax.data.tokenizers.clip_bpe import byte_letters
from clipjax.data.tokenizers.rust import files_sha256
from tests.data.hard_texts import HARD_TEXTS, SPECIAL_TEXTS

tokenizers = pytest.importorskip("tokenizers")
MERGES = ["d o", "do g</w>", "c a", "ca t</w>"]
# After 256 bytes and 256 ends of words: do, dog, ca, cat, SOT, EOT.
DOG, CAT, SOT, EOT = 513, 515, 516, 517
BEFORE_END = {letter: i for i, letter in enumerate(byte_letters())}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "merges.txt.gz"
    path.write_bytes(gzip.compress(("#version: tiny\n" + "\n".join(MERGES) + "\n").encode()))
    return path


def clip(path, context=8, **options):
    return make_tokenizer(TokenizerConfig(name="clip_bpe", path=str(path), **options), context)


def word_end(letter):
    return 256 + BEFORE_END[letter]


def test_ids_are_start_merged_pieces_end_and_zeros(vocabulary):
    tokenizer = clip(vocabulary)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (518, 0, EOT)
    expected = [SOT, word_end("a"), DOG, CAT, EOT, 0, 0, 0]
    ids = tokenizer(["a dog cat", "  A\tDOG &amp;lt;&nbsp; ", "\u201cdog\u201d"])
    assert ids.dtype == np.int32 and ids[0].tolist() == expected
    assert ids[1].tolist() == [SOT, word_end("a"), DOG, word_end("<"), EOT, 0, 0, 0]
    assert ids[2].tolist() == [SOT, word_end('"'), DOG, word_end('"'), EOT, 0, 0, 0]


def test_a_long_text_keeps_its_end_and_an_empty_one_has_both(vocabulary):
    ids = clip(vocabulary, 4)(["dog " * 1000, "", " \n"])
    assert ids.tolist() == [[SOT, DOG, DOG, EOT], [SOT, EOT, 0, 0], [SOT, EOT, 0, 0]]


def test_merges_with_windows_line_ends_and_a_byte_order_mark_give_the_same_ids(vocabulary, tmp_path):
    (tmp_path / "merges.txt").write_bytes(("\ufeff" + "\r\n".join(["#version: tiny", *MERGES, ""])).encode())
    assert clip(tmp_path / "merges.txt")(["a dog cat"]).tolist() == clip(vocabulary)(["a dog cat"]).tolist()


def test_options_change_what_they_say(vocabulary):
    assert clip(vocabulary, pad_id=EOT)(["dog"])[0].tolist() == [SOT, DOG] + [EOT] * 6
    assert clip(vocabulary, add_bos=False)(["dog"])[0].tolist() == [DOG, EOT] + [0] * 6
    assert clip(vocabulary, eos_to_pad=True)(["dog"])[0].tolist() == [SOT, DOG] + [0] * 6
    assert (clip(vocabulary, lowercase=False)(["DOG"]) != clip(vocabulary)(["DOG"])).any()
    assert (clip(vocabulary, clean=False)(["&lt;"]) != clip(vocabulary)(["&lt;"])).any()
    assert (clip(vocabulary, canonicalize=True)(["dog_cat!"])[0, :4] == [SOT, DOG, CAT, EOT]).all()
    assert clip(vocabulary, canonicalize=True, drop_underscore=True)(["dog_cat!"])[0].tolist() != [SOT, DOG, CAT, EOT]


def test_a_vocabulary_of_bytes_knows_every_text(vocabulary):
    assert clip(vocabulary).unk_id == -1


def test_no_text_holds_a_start_or_an_end(vocabulary):
    ids = clip(vocabulary, 77)(HARD_TEXTS + SPECIAL_TEXTS)
    assert ((ids == SOT).sum(1) == 1).all() and ((ids == EOT).sum(1) == 1).all()


@pytest.fixture(scope="module")
def word_piece(tmp_path_factory):
    """A small BERT as transformers saves it, without transformers."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {piece: i for i, piece in enumerate([*special, "a", "dog", "##s", "cat", "[", "]", "sep"])}
    pipeline = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    pipeline.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pipeline.add_special_tokens(special)
    pipeline.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    pipeline.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "sep_token": {"content": "[SEP]"}}))
    return folder


def test_a_tokenizer_json_is_followed(word_piece):
    tokenizer = make_tokenizer(TokenizerConfig(name="hf", path=str(word_piece)), 6)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (11, 0, 3)
    ids = tokenizer(["A dogs", "dog " * 50, "[SEP]"]).tolist()
    assert ids == [[2, 4, 5, 6, 3, 0], [2, 5, 5, 5, 5, 3], [2, 8, 10, 9, 3, 0]]
    assert tokenizer.pieces([tokenizer.unk_id]) == ["[UNK]"]
    without = make_tokenizer(TokenizerConfig(name="hf", path=str(word_piece / "tokenizer.json"), add_eos=True), 6)
    assert without(["a dogs"])[0].tolist() == [4, 5, 6, 3, 0, 0]


def test_a_pickled_tokenizer_gives_the_same_ids(vocabulary, word_piece):
    for name, path in (("clip_bpe", vocabulary), ("hf", word_piece)):
        tokenizer = make_tokenizer(TokenizerConfig(name=name, path=str(path), lowercase=True), 20)
        again = pickle.loads(pickle.dumps(tokenizer))
        texts = HARD_TEXTS + SPECIAL_TEXTS
        assert (again(texts) == tokenizer(texts)).all() and again.config == tokenizer.config


def test_lengths_are_those_without_an_end_and_pieces_those_of_the_vocabulary(vocabulary, word_piece):
    texts = ["a dog cat", "dog " * 50, ""]
    short, long = clip(vocabulary, 4), clip(vocabulary, 80)
    assert short.lengths(texts) == long.lengths(texts) == [5, 52, 2]
    assert short(texts).shape == (3, 4), "counting does not change what the model reads"
    assert short.pieces([SOT, DOG, EOT]) == ["<start_of_text>", "dog</w>", "<end_of_text>"]
    for context in (6, 60):
        tokenizer = make_tokenizer(TokenizerConfig(name="hf", path=str(word_piece)), context)
        whole = make_tokenizer(TokenizerConfig(name="hf", path=str(word_piece)), 60)
        expected = [int((row != whole.pad_id).sum()) for row in whole(texts)]
        assert tokenizer.lengths(texts) == expected
        assert tokenizer.pieces([10**6]) == ["<1000000>"]


def test_the_hash_covers_every_file(tmp_path, vocabulary):
    letters = byte_letters()
    pieces = [*letters, *(f"{c}</w>" for c in letters), "do", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nd o\n")
    first = clip(tmp_path)
    assert first.pad_id == first.eos_id == 514, "transformers pads with the end of text"
    assert first.config.clean is False and clip(vocabulary).config.clean is True
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert clip(tmp_path).sha256 != first.sha256
    assert clip(vocabulary).sha256 == files_sha256(vocabulary)


def test_missing_and_broken_files_are_named(tmp_path, vocabulary, word_piece):
    def refuse(message, name, path, context=8, **options):
        with pytest.raises(ConfigError, match=message):
            make_tokenizer(TokenizerConfig(name=name, path=str(path), **options), context)

    refuse("there is no file '.*gone.gz'", "clip_bpe", tmp_path / "gone.gz")
    refuse("there is no file '.*vocab.json'", "clip_bpe", tmp_path)
    (tmp_path / "cut.gz").write_bytes(vocabulary.read_bytes()[:-12])
    refuse("cut.gz' cannot be read .* cut short", "clip_bpe", tmp_path / "cut.gz")
    (tmp_path / "text").write_text("header\none two three\n")
    refuse("text' is not a list of merges", "clip_bpe", tmp_path / "text")
    (tmp_path / "unknown").write_text("header\nqq zz\n")
    refuse("merges of unknown pieces", "clip_bpe", tmp_path / "unknown")
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b\n")
    refuse("has no '<|startoftext|>' and", "clip_bpe", tmp_path)
    refuse("there is no file '.*tokenizer.json'", "hf", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    refuse("tokenizer.json' is not JSON", "hf", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    refuse("is not a tokenizer.json", "hf", tmp_path)
    refuse("context_length=2 has no room for text beside 2 special", "clip_bpe", vocabulary, 2)
    refuse("pad_id=518 is not an id of", "clip_bpe", vocabulary, pad_id=518)


@settings(max_examples=300)
@given(st.text(st.characters(max_codepoint=126), max_size=40))
def test_plain_ascii_needs_no_ftfy(text):
    """The short way round ftfy gives what ftfy gives."""
    ftfy = pytest.importorskip("ftfy")
    assert repair(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def test_cleaning_needs_ftfy_and_says_so(monkeypatch):
    clean_text._ftfy.cache_clear()
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ConfigError, match="config.tokenizer.clean needs ftfy, which is not installed"):
        make_clean(replace(TokenizerConfig(), clean=True))
    clean_text._ftfy.cache_clear()
