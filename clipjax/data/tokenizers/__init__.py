"""Text -> int32 token ids of one fixed length.

    tokenize = make_tokenizer(TokenizerConfig(name="clip_bpe", path="bpe_simple_vocab_16e6.txt.gz"), 77)
    tokenize(["a cat", "two dogs"])     # int32 [2, 77]

Each kind of tokenizer is one file with one row in TOKENIZERS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from clipjax.config import Part, TokenizerConfig, nearest, require
from clipjax.data.tokenizers.clean_text import canonicalize
from clipjax.data.tokenizers.clip_bpe import clip_bpe
from clipjax.data.tokenizers.hf import hf_tokenizer
from clipjax.data.tokenizers.sentencepiece import SentencePieceTokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "canonicalize", "make_tokenizer"]


class Tokenizer(Protocol):
    """Can be pickled."""

    config: TokenizerConfig  # the one it was made from, with the kind's own rules in place of None
    vocab_size: int
    pad_id: int
    eos_id: int  # -1: none
    unk_id: int  # what stands for text that the vocabulary cannot express; -1: none
    sha256: str  # of the vocabulary file, or of all of them

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), context_length] int32, padded on the right."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, special ones included, if the context had no end."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id's piece of the vocabulary, as text."""


# All kinds share all options, so that each row has the base class as its config.
TOKENIZERS: dict[str, Part] = {
    "sentencepiece": Part(TokenizerConfig, SentencePieceTokenizer),
    "clip_bpe": Part(TokenizerConfig, clip_bpe),
    "hf": Part(TokenizerConfig, hf_tokenizer),
}


def make_tokenizer(config: TokenizerConfig, context_length: int) -> Tokenizer:
    """The tokenizer that config.name selects.

    Raises ConfigError for an unknown name, and for files that are missing or not a vocabulary of that kind.
    """
    require(
        config.name in TOKENIZERS,
        f"config.tokenizer.name='{config.name}' is unknown.{nearest(config.name, TOKENIZERS)}",
    )
    return TOKENIZERS[config.name](config, context_length)
