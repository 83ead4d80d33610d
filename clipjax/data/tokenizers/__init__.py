"""Text -> int32 token ids of one fixed length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from clipjax.config import TokenizerConfig, nearest, require
from clipjax.data.tokenizers.clip_bpe import clip_bpe
from clipjax.data.tokenizers.hf import hf_tokenizer
from clipjax.data.tokenizers.sentencepiece import SentencePieceTokenizer


class Tokenizer(Protocol):
    """Picklable."""

    config: TokenizerConfig  # as it was given, with the kind's own rules in place of None
    vocab_size: int
    pad_id: int
    eos_id: int  # -1: none
    sha256: str  # of the vocabulary file, or of all of them

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), context_length] int32."""


TOKENIZERS: dict[str, Callable[[TokenizerConfig, int], Tokenizer]] = {
    "sentencepiece": SentencePieceTokenizer,
    "clip_bpe": clip_bpe,
    "hf": hf_tokenizer,
}


def make_tokenizer(config: TokenizerConfig, context_length: int) -> Tokenizer:
    """Raises ConfigError for an unknown name or files that are missing or no tokenizer."""
    require(
        config.name in TOKENIZERS,
        f"config.tokenizer.name='{config.name}' is unknown.{nearest(config.name, TOKENIZERS)}",
    )
    return TOKENIZERS[config.name](config, context_length)
