"""Token ids are SentencePiece's own, with EOS kept, padding known and text cleaned as big_vision does."""

import hashlib
import io
import pickle

import numpy as np
import pytest
import sentencepiece

from clipjax.config import ConfigError, TokenizerConfig
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.clean_text import canonicalize

CORPUS = ["a small dog on the beach", "two blue stars, three red circles", "a photo of a cat", "naïve café 猫"] * 50
TEXTS = [
    "a small dog",
    "",
    "Two BLUE stars!",
    "a photo of a cat on the beach with three red circles and two blue stars",
    "  a\tcat\n ",
    "naïve café 猫 🐶",
    "</s> <pad>",
]


def train(path, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=60, model_type="bpe", minloglevel=2, **options
    )
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """No BOS; pad 0, EOS 1, unknown 2."""
    return train(tmp_path_factory.mktemp("spm") / "own_pad.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@pytest.fixture(scope="module")
def model_without_pad(tmp_path_factory):
    """SentencePiece's defaults: unknown 0, BOS 1, EOS 2, no pad."""
    return train(tmp_path_factory.mktemp("spm") / "no_pad.model")


def test_ids_are_those_of_sentencepiece_then_eos_then_padding(model):
    tokenizer = make_tokenizer(TokenizerConfig(path=model), 48)
    reference = sentencepiece.SentencePieceProcessor(model_file=model)
    ids = tokenizer(TEXTS)
    assert ids.shape == (len(TEXTS), 48) and ids.dtype == np.int32
    for row, text in zip(ids, TEXTS, strict=True):
        pieces = reference.encode(text.lower())[:47] + [1]
        assert row.tolist() == pieces + [0] * (48 - len(pieces))


def test_truncation_keeps_bos_and_eos(model_without_pad):
    tokenizer = make_tokenizer(TokenizerConfig(path=model_without_pad, add_bos=True), 6)
    reference = sentencepiece.SentencePieceProcessor(model_file=model_without_pad)
    assert tokenizer([TEXTS[3]])[0].tolist() == [1, *reference.encode(TEXTS[3])[:4], 2]


def test_padding_is_the_models_own_or_its_eos_or_what_is_asked_for(model, model_without_pad):
    def padding(path, **options):
        tokenizer = make_tokenizer(TokenizerConfig(path=path, **options), 8)
        assert tokenizer([""])[0, 1:].tolist() == [tokenizer.pad_id] * 7
        return tokenizer.pad_id

    assert padding(model) == 0
    assert padding(model_without_pad) == 2
    assert padding(model_without_pad, pad_id=0) == 0
    assert padding(model, pad_id=1) == 1


def test_attributes_describe_the_file(model):
    tokenizer = make_tokenizer(TokenizerConfig(path=model), 8)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (60, 1, -1)
    assert tokenizer.sha256 == hashlib.sha256(open(model, "rb").read()).hexdigest()


def test_case_is_kept_when_asked(model):
    keep, lower = (make_tokenizer(TokenizerConfig(path=model, lowercase=x), 16) for x in (False, True))
    assert (lower(["A DOG"]) == keep(["a dog"])).all()
    assert (keep(["A DOG"]) != keep(["a dog"])).any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "Hello World"),
        ("a_photo  of\ta  (cat).", "a photo of a cat"),
        ("  'quoted' -- text ", "quoted text"),
        ("C++ & co", "C co"),
        ("...", ""),
    ],
)
def test_canonical_text_has_no_punctuation_and_single_spaces(text, expected):
    assert canonicalize(text) == expected


def test_canonicalize_is_applied_before_the_ids(model):
    tokenizer = make_tokenizer(TokenizerConfig(path=model, canonicalize=True), 16)
    assert (tokenizer(["A_small,  DOG!"]) == tokenizer(["a small dog"])).all()


def test_lengths_are_those_without_an_end_and_pieces_those_of_the_model(model):
    reference = sentencepiece.SentencePieceProcessor(model_file=model)
    texts = ["a red square", "a red square " * 20, ""]
    plain = [len(pieces) for pieces in reference.encode(texts)]
    for context in (4, 200):
        assert make_tokenizer(TokenizerConfig(path=model), context).lengths(texts) == [n + 1 for n in plain]
    tokenizer = make_tokenizer(TokenizerConfig(path=model, add_eos=False), 4)
    assert tokenizer.lengths(texts) == plain
    ids = reference.encode("a red square")
    assert tokenizer.pieces(ids) == [reference.id_to_piece(i) for i in ids]


def test_a_pickled_tokenizer_gives_the_same_ids(model):
    tokenizer = make_tokenizer(TokenizerConfig(path=model), 16)
    assert (pickle.loads(pickle.dumps(tokenizer))(TEXTS) == tokenizer(TEXTS)).all()


def test_an_enormous_caption_is_cut_like_any_other(model):
    tokenizer = make_tokenizer(TokenizerConfig(path=model), 16)
    assert (tokenizer(["a small dog " * 100_000]) == tokenizer(["a small dog " * 20])).all()


def test_wrong_settings_are_refused_by_name(model, model_without_pad, tmp_path):
    def refuse(message, context_length=8, **options):
        with pytest.raises(ConfigError, match=message):
            make_tokenizer(TokenizerConfig(**options), context_length)

    refuse(
        "path='gone.model' is not a file. Train one with python -m data_pipelines.train_tokenizer", path="gone.model"
    )
    (tmp_path / "x.model").write_bytes(b"not a model")
    refuse("x.model' is not a SentencePiece model", path=str(tmp_path / "x.model"))
    refuse("'sentencepeice' is unknown. Did you mean 'sentencepiece'", name="sentencepeice")
    refuse("add_bos: .* no such piece", path=model, add_bos=True)
    refuse(r"pad_id: .* with 60 pieces has no such piece \(id 60\)", path=model, pad_id=60)
    refuse("context_length=2 has no room", path=model_without_pad, add_bos=True, context_length=2)
