"""Wraps a pipeline of the `tokenizers` library as a Tokenizer: fixed length, padding, and rules for the text."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clipjax.config import ConfigError, TokenizerConfig, require
from clipjax.json_files import read_json as read_any_json

UNKNOWN = ("<unk>", "[UNK]")  # of models that do not name theirs, such as Unigram
PROBES = ("", "a photo of 2 cats, isn't it?", "\u00e9\u6f22\U0001f600 \u0e01\u0e33 <s>")  # a text of each kind


class RustTokenizer:
    """A Tokenizer around a tokenizers.Tokenizer, whose post-processor adds the special tokens.

    config: with the kind's own rules in place of None. clean: applied to each text first. literals: matches text that
    must not be read as a special token; a space is put after the first character of each match. eos_id: -1 for none.
    Raises ConfigError.
    """

    def __init__(
        self,
        pipeline: Any,
        config: TokenizerConfig,
        context_length: int,
        *,
        pad_id: int,
        eos_id: int,
        sha256: str,
        clean: Callable[[str], str] | None,
        literals: re.Pattern | None = None,
    ):
        self.config, self.context_length = config, context_length
        self.pad_id, self.eos_id, self.sha256 = pad_id, eos_id, sha256
        self.vocab_size = pipeline.get_vocab_size()
        own = getattr(pipeline.model, "unk_token", None)  # CLIP's names the end of a text, which stands for nothing
        unknown = (pipeline.token_to_id(token) for token in ((own,) if own else UNKNOWN))
        self.unk_id = next((number for number in unknown if number not in (None, eos_id)), -1)
        self.clean, self.literals, self.pipeline = clean, literals, pipeline
        num_special = pipeline.num_special_tokens_to_add(is_pair=False)
        require(
            num_special < context_length,
            f"config.model.text.context_length={context_length} has no room for text beside {num_special} special "
            "tokens.",
        )
        require(
            0 <= pad_id < self.vocab_size,
            f"config.tokenizer.pad_id={pad_id} is not an id of {config.path}, which has {self.vocab_size}.",
        )
        require(
            eos_id >= 0 or not config.eos_to_pad,
            f"config.tokenizer.eos_to_pad needs an end of text, and {config.path} has none.",
        )
        # The library truncates before the post-processor adds special tokens, so that the end of a text survives.
        pipeline.enable_truncation(context_length)
        pipeline.no_padding()
        with quiet_stderr():
            try:
                self(PROBES)  # damage may be met only now
            except OverflowError as error:
                raise ConfigError(f"config.tokenizer.path='{config.path}' gives ids beyond 2^31: {error}.") from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        ids = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        with library_errors(f"config.tokenizer.path='{self.config.path}' cannot encode a text"):
            encodings = self.pipeline.encode_batch_fast(self._prepared(texts))
        for row, encoding in zip(ids, encodings, strict=True):
            require(
                len(encoding) <= self.context_length,
                f"config.tokenizer.path='{self.config.path}' gives {len(encoding)} tokens where {self.context_length} "
                "were asked for (config.model.text.context_length): its rules contradict each other.",
            )
            row[: len(encoding)] = encoding.ids
        if self.config.eos_to_pad:
            ids[ids == self.eos_id] = self.pad_id
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        with library_errors(f"config.tokenizer.path='{self.config.path}' cannot encode a text"):
            whole = import_tokenizers().Tokenizer.from_str(self.pipeline.to_str())
            whole.no_truncation()
            return [len(encoding) for encoding in whole.encode_batch_fast(self._prepared(texts))]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.pipeline.id_to_token(int(i)) or f"<{int(i)}>" for i in ids]

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        if self.clean:
            texts = [self.clean(text) for text in texts]
        if self.literals:
            texts = [self.literals.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text) for text in texts]
        return list(texts)


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Errors of the library become ConfigErrors that begin with `what`.

    It raises plain Exception, and PanicException, which is not even an Exception, where its code meets what it does not
    expect in a file.
    """
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{what} ({str(error)[:300]}).") from error


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps what libraries in other languages write to stderr about a file, unless there is no error to tell it."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            raise
        else:
            os.dup2(kept, 2)
            file.seek(0)
            os.write(2, file.read(1 << 16))
        finally:
            os.close(kept)


def import_tokenizers() -> ModuleType:
    """The library `tokenizers`. Raises ConfigError where it is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "config.tokenizer.name='hf' and 'clip_bpe' need the library tokenizers, which is not installed: "
            "pip install 'clipjax[interop]'."
        ) from error
    return tokenizers


def files_sha256(*paths: Path) -> str:
    """SHA-256 of a file's bytes; for several files, of lines "name sha256" in the order given."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    if len(paths) == 1:
        return hashes[0]
    lines = "".join(f"{path.name} {digest}\n" for path, digest in zip(paths, hashes, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ConfigError for one that is missing or not JSON."""
    require(path.is_file(), f"config.tokenizer.path: there is no file '{path}'.")
    try:
        return read_any_json(path)
    except ValueError as error:
        raise ConfigError(f"config.tokenizer.path: '{path}' is not JSON ({error}).") from error
