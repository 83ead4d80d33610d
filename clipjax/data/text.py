"""Text -> int32 token ids of one fixed length."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from clipjax.config import ConfigError, TokenizerConfig, nearest, require


class Tokenizer(Protocol):
    vocab_size: int
    pad_id: int
    eos_id: int  # -1: none
    sha256: str  # of the vocabulary file

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), context_length] int32."""


def make_tokenizer(config: TokenizerConfig, context_length: int) -> Tokenizer:
    """Raises ConfigError for an unknown name or a file that is missing or no tokenizer."""
    require(
        config.name in TOKENIZERS,
        f"config.tokenizer.name='{config.name}' is unknown.{nearest(config.name, TOKENIZERS)}",
    )
    return TOKENIZERS[config.name](config, context_length)


class SentencePieceTokenizer:
    """A SentencePiece model with SigLIP's rules: EOS survives truncation, padding to the full context.

    Lower-casing and canonicalisation come first, as in big_vision pp/ops_text.py.
    """

    def __init__(self, config: TokenizerConfig, context_length: int):
        path = Path(config.path)
        if not path.is_file():
            raise ConfigError(
                f"config.tokenizer.path='{config.path}' is not a file. Train one with "
                "python -m data_pipelines.train_tokenizer, or point it at a SentencePiece .model."
            )
        data = path.read_bytes()
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ConfigError(
                f"config.tokenizer.path='{config.path}' is not a SentencePiece model ({error})."
            ) from error
        self.config, self.context_length = config, context_length
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = self.model.vocab_size()
        self.eos_id, self.bos_id = self.model.eos_id(), self.model.bos_id()
        own_pad = self.model.pad_id() if self.model.pad_id() >= 0 else self.eos_id
        self.pad_id = own_pad if config.pad_id is None else config.pad_id
        for name, needed, found in (
            ("add_eos", config.add_eos, self.eos_id),
            ("add_bos", config.add_bos, self.bos_id),
            ("pad_id", True, self.pad_id),
        ):
            require(
                not needed or 0 <= found < self.vocab_size,
                f"config.tokenizer.{name}: {config.path} with {self.vocab_size} pieces has no such piece (id {found}).",
            )
        require(
            config.add_bos + config.add_eos < context_length,
            f"config.model.text.context_length={context_length} has no room for text beside BOS and EOS.",
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        ids = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        start = [self.bos_id] if self.config.add_bos else []
        end = [self.eos_id] if self.config.add_eos else []
        room = self.context_length - len(start) - len(end)
        cleaned = [self.clean(text) for text in texts]
        for row, pieces in zip(ids, self.model.encode(cleaned), strict=True):
            pieces = start + pieces[:room] + end
            row[: len(pieces)] = pieces
        return ids

    def clean(self, text: str) -> str:
        if self.config.canonicalize:
            text = canonicalize(text)
        return text.lower() if self.config.lowercase else text


def canonicalize(text: str) -> str:
    """Without ASCII punctuation ("_" becomes a space), runs of white space as one space, stripped: the
    canonical form of big_vision's zero-shot evaluator (evaluators/proj/image_text/prompt_engineering.py)."""
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


TOKENIZERS: dict[str, Callable[[TokenizerConfig, int], Tokenizer]] = {"sentencepiece": SentencePieceTokenizer}
