"""SentencePiece models (SigLIP, SigLIP 2, and what data_pipelines.train_tokenizer writes)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from clipjax.config import ConfigError, TokenizerConfig, require
from clipjax.data.tokenizers.clean_text import make_clean
from clipjax.data.tokenizers.rust import quiet_stderr
from clipjax.files import MAX_TEXT, TextFileError, read_file


class SentencePieceTokenizer:
    """The SentencePiece model config.path, with SigLIP's rules by default: lower case, no BOS, EOS, no cleaning.

    Text is cleaned first. EOS survives truncation. A control symbol written out in a text is text like any other.
    Raises ConfigError.
    """

    def __init__(self, config: TokenizerConfig, context_length: int):
        path = Path(config.path)
        if not path.is_file():
            raise ConfigError(
                f"config.tokenizer.path='{config.path}' is not a file. Train one with "
                "python -m data_pipelines.train_tokenizer, or point it at a SentencePiece .model."
            )
        try:
            data = read_file(path, MAX_TEXT)
            if not data:
                raise TextFileError("the file is empty")
            with quiet_stderr():
                self.model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, TextFileError) as error:
            raise ConfigError(
                f"config.tokenizer.path='{config.path}' is not a SentencePiece model ({error})."
            ) from error
        own = {"clean": False, "lowercase": True, "add_bos": False, "add_eos": True}
        config = dataclasses.replace(config, **{n: v for n, v in own.items() if getattr(config, n) is None})
        self.config, self.context_length = config, context_length
        self.clean = make_clean(config)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = self.model.vocab_size()
        self.eos_id, self.bos_id = self.model.eos_id(), self.model.bos_id()
        self.unk_id = self.model.unk_id()
        own_pad = self.model.pad_id() if self.model.pad_id() >= 0 else self.eos_id
        self.pad_id = own_pad if config.pad_id is None else config.pad_id
        for name, needed, piece in (
            ("add_eos", config.add_eos, self.eos_id),
            ("add_bos", config.add_bos, self.bos_id),
            ("pad_id", True, self.pad_id),
        ):
            require(
                not needed or 0 <= piece < self.vocab_size,
                f"config.tokenizer.{name}: {config.path} with {self.vocab_size} pieces has no such piece (id {piece}).",
            )
        require(
            config.add_bos + config.add_eos < context_length,
            f"config.model.text.context_length={context_length} has no room for text beside BOS and EOS.",
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        ids = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        start, end = self._ends()
        room = self.context_length - len(start) - len(end)
        for row, pieces in zip(ids, self._encode(texts), strict=True):
            pieces = start + pieces[:room] + end
            row[: len(pieces)] = pieces
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        start, end = self._ends()
        return [len(start) + len(pieces) + len(end) for pieces in self._encode(texts)]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.model.id_to_piece(int(i)) for i in ids]

    def _ends(self) -> tuple[list[int], list[int]]:
        start = [self.bos_id] if self.config.add_bos else []
        return start, [self.pad_id if self.config.eos_to_pad else self.eos_id] if self.config.add_eos else []

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.model.encode([self.clean(text) for text in texts] if self.clean else list(texts))
