import hashlib

import pytest
import sentencepiece

from data_pipelines import scenes, train_tokenizer
from data_pipelines.command import PipelineError


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "records"
    scenes.build(folder, train=400, validation=1, compositional=1, relations=1)
    return folder


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_same_captions_give_the_same_model_bytes(captions, tmp_path, model_type):
    for name in ("a.model", "b.model"):
        train_tokenizer.build(tmp_path / name, records=captions, vocab_size=128, model_type=model_type)
    assert digest(tmp_path / "a.model") == digest(tmp_path / "b.model")
    assert str(tmp_path).encode() not in (tmp_path / "a.model").read_bytes()


def test_ids_are_pad_0_eos_1_unk_2_without_bos_and_no_caption_has_an_unknown_piece(captions, tmp_path):
    train_tokenizer.build(tmp_path / "t.model", records=captions, vocab_size=128)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    assert (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id(), tokenizer.bos_id()) == (0, 1, 2, -1)
    assert tokenizer.vocab_size() <= 128
    text = "three blue triangles"
    assert 2 not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text


def test_large_vocabularies_spell_unseen_characters_in_bytes(captions, tmp_path):
    train_tokenizer.build(tmp_path / "t.model", records=captions, vocab_size=1024)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    assert 2 not in tokenizer.encode("éμ漢") and tokenizer.decode(tokenizer.encode("éμ漢")) == "éμ漢"


def test_text_is_lower_cased_unless_kept(tmp_path):
    (tmp_path / "text.txt").write_text("A Cat And A Dog\n\nThe Dog And The Cat\n" * 20)
    for keep_case in (False, True):
        out = tmp_path / f"{keep_case}.model"
        train_tokenizer.build(out, text=tmp_path / "text.txt", vocab_size=40, keep_case=keep_case)
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(out))
        pieces = "".join(tokenizer.id_to_piece(i) for i in range(3, tokenizer.vocab_size()))
        assert ("C" in pieces) == keep_case


def test_second_run_changes_nothing_and_other_text_is_refused(captions, tmp_path, capsys):
    out = tmp_path / "t.model"
    first = train_tokenizer.build(out, records=captions, vocab_size=128)
    before = out.stat().st_mtime_ns
    assert train_tokenizer.build(out, records=captions, vocab_size=128) == first
    assert out.stat().st_mtime_ns == before
    assert "left as it is" in capsys.readouterr().out
    with pytest.raises(PipelineError, match="--overwrite"):
        train_tokenizer.build(out, records=captions, vocab_size=100)
    train_tokenizer.build(out, records=captions, vocab_size=100, overwrite=True)


def test_no_more_texts_than_asked_for_are_used(captions, tmp_path):
    found = train_tokenizer.build(tmp_path / "t.model", records=captions, vocab_size=100, max_texts=200)
    assert 150 <= found["texts"] <= 200


def test_vocabulary_too_small_for_the_characters_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz\n")
    with pytest.raises(PipelineError, match="--vocab_size"):
        train_tokenizer.build(tmp_path / "t.model", text=tmp_path / "text.txt", vocab_size=10)
    assert list(tmp_path.iterdir()) == [tmp_path / "text.txt"]


def test_one_of_records_and_text_is_needed(tmp_path):
    with pytest.raises(PipelineError, match="either --records"):
        train_tokenizer.build(tmp_path / "t.model")


@pytest.mark.parametrize(("text", "out"), [("t.txt", "t.txt"), ("t.txt", "notes"), ("t.txt", ""), ("t.json", "t")])
def test_a_file_that_is_no_model_is_never_replaced_not_even_the_text_itself(tmp_path, text, out):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / text).write_text("a cat and a dog\nthe dog and the cat\n" * 20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(PipelineError, match="exists and (is not a SentencePiece|does not describe a) model"):
        train_tokenizer.build(tmp_path / out, text=tmp_path / text, vocab_size=40, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
