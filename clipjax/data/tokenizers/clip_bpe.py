"""CLIP's byte-pair encoding, from OpenAI's vocabulary file or from vocab.json and merges.txt."""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, TokenizerConfig, require
from clipjax.config.errors import shown
from clipjax.data.tokenizers.clean_text import make_clean
from clipjax.data.tokenizers.hf import find_token, set_template, token_settings
from clipjax.data.tokenizers.rust import (
    RustTokenizer,
    files_sha256,
    import_tokenizers,
    library_errors,
    quiet_stderr,
    read_json,
)
from clipjax.files import MAX_TEXT, decode_text, read_text, split_lines

VOCAB_SIZE = 49_408
MAX_ID = 1 << 20
# A clitic, a word, one digit, or a run of anything else. OpenAI's pattern ignores case: "ſ" counts as "s", and U+0345,
# whose capital is a letter, matches nothing. transformers' pattern does not ignore case.
OPENAI_WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"
HF_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_bpe(config: TokenizerConfig, context_length: int) -> RustTokenizer:
    """The tokenizer of CLIP, by the rules of the code that config.path belongs to.

    bpe_simple_vocab_16e6.txt(.gz): openai/CLIP and open_clip (ftfy, HTML entities, white space, lower case; padding 0).
    A folder with vocab.json and merges.txt: transformers' CLIPTokenizer (NFC, white space, lower case; padded with the
    token that tokenizer_config.json names, or the end of text).

    SOT and EOT enclose every text and survive truncation. In a text itself they are read as text. Raises ConfigError.
    """
    tokenizers = import_tokenizers()
    path = Path(config.path)
    files = [path / "vocab.json", path / "merges.txt"] if path.is_dir() else [path]
    for file in files:
        require(
            file.is_file(),
            f"config.tokenizer.path='{config.path}': there is no file '{file}'. name='clip_bpe' reads "
            "bpe_simple_vocab_16e6.txt.gz (it comes with open_clip and openai/CLIP), or a folder with vocab.json and "
            "merges.txt.",
        )
    vocab, merges = read_hf(*files) if path.is_dir() else read_openai(path)
    sot, eot = ("<|startoftext|>", "<|endoftext|>") if path.is_dir() else ("<start_of_text>", "<end_of_text>")
    require(
        vocab.keys() >= {sot, eot}, f"config.tokenizer.path='{config.path}' has no '{sot}' and '{eot}': not CLIP's."
    )
    with library_errors(f"config.tokenizer.path='{config.path}' has merges of unknown pieces"), quiet_stderr():
        model = tokenizers.models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=eot)
    pipeline = tokenizers.Tokenizer(model)
    words = tokenizers.Regex(HF_WORDS if path.is_dir() else OPENAI_WORDS)
    split = tokenizers.pre_tokenizers.Split(words, behavior="removed", invert=True)
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    own: dict[str, Any] = {"clean": not path.is_dir(), "lowercase": True, "add_bos": True, "add_eos": True}
    config = dataclasses.replace(config, **{n: v for n, v in own.items() if getattr(config, n) is None})
    own_pad, clean = 0, make_clean(config)
    if path.is_dir():
        clean = make_clean(dataclasses.replace(config, lowercase=False))  # the library lowers case, as the last step
        normalizers = tokenizers.normalizers
        steps = [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")]
        pipeline.normalizer = normalizers.Sequence(steps + [normalizers.Lowercase()] * config.lowercase)
        settings = token_settings(path)
        own_pad = find_token(pipeline, settings, "pad") if settings.get("pad_token") else vocab[eot]
    set_template(pipeline, config, {"bos": vocab[sot], "eos": vocab[eot]})
    return RustTokenizer(
        pipeline,
        config,
        context_length,
        pad_id=own_pad if config.pad_id is None else config.pad_id,
        eos_id=vocab[eot],
        sha256=files_sha256(*files),
        clean=clean,
    )


def read_openai(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(piece -> id, merges) of bpe_simple_vocab_16e6.txt, gzipped or not. CLIP uses the first 48,894 of its merges.

    Ids: the 256 bytes, the same at the end of a word, the merges in order, SOT, EOT.
    """
    try:
        with open(path, "rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(file) if packed else file as text:
                raw = text.read(MAX_TEXT + 1)
        require(len(raw) <= MAX_TEXT, f"config.tokenizer.path='{path}' has more than {MAX_TEXT:,} bytes.")
        lines = split_lines(decode_text(raw, path.name))
    except ConfigError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"config.tokenizer.path='{path}' cannot be read ({error}); is it cut short?") from error
    merges = [tuple(line.split(" ")) for line in lines[1 : VOCAB_SIZE - 2 * 256 - 2 + 1] if line]
    require(
        bool(merges) and all(len(pair) == 2 for pair in merges),
        f"config.tokenizer.path='{path}' is not a list of merges, two pieces a line after one line of header.",
    )
    letters = byte_letters()
    pieces = [*letters, *(f"{c}</w>" for c in letters), *map("".join, merges), "<start_of_text>", "<end_of_text>"]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def read_hf(vocab_file: Path, merges_file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(piece -> id, merges) of vocab.json and merges.txt. Raises ConfigError."""
    vocab = read_json(vocab_file)
    require(
        isinstance(vocab, dict) and all(type(i) is int and 0 <= i < MAX_ID for i in vocab.values()),
        f"config.tokenizer.path: '{vocab_file}' is not a map from pieces to ids.",
    )
    try:
        lines = split_lines(read_text(merges_file))
    except ValueError as error:
        raise ConfigError(f"config.tokenizer.path: '{merges_file}' is not text ({error}).") from error
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    bad = next((pair for pair in merges if len(pair) != 2), None)
    require(bad is None, f"config.tokenizer.path: '{merges_file}' has a line that is not two pieces: {shown(bad)}.")
    return vocab, merges


def byte_letters() -> list[str]:
    """The 256 characters that stand for bytes in a vocabulary, in CLIP's order (GPT-2's encoder).

    Printable Latin-1 characters stand for themselves; the other bytes follow as U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(256 - len(printable)))]
