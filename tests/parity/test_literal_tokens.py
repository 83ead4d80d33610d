"""A special token that is written out in a text is letters to a SentencePiece run, and to what is exported from it."""

import os

import pytest

from clipjax.config import TokenizerConfig
from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.train import train_sentencepiece
from clipjax.interop.names import InteropError
from clipjax.interop.sentencepiece_files import CONTROL, NORMAL, SentencePieceModel, _cuts
from clipjax.interop.tokenizer_export import plan_tokenizer
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import_torch()
transformers = import_torch("transformers")

FEW = [f"a drawing of {n} dogs and a red cat" for n in range(40)]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MANY = [f"{a}{b}{c} {b}{a} </{a}" for a in LETTERS for b in "aeiouxyz" for c in LETTERS[:8]]
GREEK = [f"{a}{b} {b}" for a in "\u03b1\u03b2\u03b3\u03b4" for b in "\u03b5\u03b6\u03b7\u03b8"] * 5
TEXTS = ["<s> red </s>", "a</s>b", "</s>", "<unk> cat <unk>", "<pad> red<pad>", "<S> RED </S>", "\uff1c/s\uff1e red"]
TEXTS += ["</s> red </s> cat", "a <0x41> b<0x7A>", "</s></s>", "</s", "<s", "a red cat"]
LENGTH = 24


def model(folder, lines, size, kind):
    path = folder / "own.model"
    path.write_bytes(train_sentencepiece(lines, size, model_type=kind))
    return path


@pytest.mark.parametrize("rules", [{}, dict(canonicalize=True, drop_underscore=True, pad_id=1)])
@pytest.mark.parametrize(
    ("lines", "size", "kind"), [(FEW, 40, "unigram"), (GREEK, 16, "unigram"), (MANY, 1030, "unigram"), (FEW, 40, "bpe")]
)  # 1,030 pieces are enough for bytes
def test_transformers_gives_the_runs_ids(lines, size, kind, rules, tmp_path):
    config = TokenizerConfig(path=str(model(tmp_path, lines, size, kind)), **rules)
    ours = make_tokenizer(config, LENGTH)(TEXTS)
    for family in ("hf_clip", "hf_siglip"):
        out = tmp_path / family
        out.mkdir()
        plan_tokenizer("hf", family, config, LENGTH).write(out)
        theirs = transformers.AutoTokenizer.from_pretrained(out)
        assert theirs.eos_token == "</s>" and theirs.eos_token_id == 1
        found = theirs(TEXTS, padding="max_length", truncation=True, max_length=LENGTH).input_ids
        for text, row, expected in zip(TEXTS, found, ours.tolist(), strict=True):
            assert row == expected, (family, text)


def test_pieces_that_leave_no_place_to_cut_are_refused():
    pieces = [("<s>", 0.0, CONTROL), *((text, -1.0, NORMAL) for text in ("<", "s", ">", "a<s", "s>", "></"))]
    with pytest.raises(InteropError, match="reads its piece '<s>' as letters"):
        _cuts(SentencePieceModel(pieces), [])
    assert _cuts(SentencePieceModel([*pieces[:5], (">s>", -1.0, NORMAL)]), []) == "<s(?=>)", "it spans no '<s>'"
