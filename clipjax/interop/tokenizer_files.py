"""Tokenizers that come with weights: the configuration that their files give, and copying them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.config import TokenizerConfig
from clipjax.data.tokenizers.files import CLIP_FOLDER, files_of
from clipjax.interop.names import Description

OWN = "clipjax_tokenizer_config.json"  # options of the tokenizer beside it
OPENAI = ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")

# open_clip's names for what is done to a text, after OpenAI's cleaning.
CLEANING = {"whitespace": {}, "lower": dict(lowercase=True), "canonicalize": dict(canonicalize=True, lowercase=True)}


# Files that hold a tokenizer, whether or not clipjax can read it.
LIKE_A_TOKENIZER = re.compile(
    r"(tokenizer|spiece|vocab|merges|special_tokens|added_tokens|bpe_|sentencepiece|.*\.(model|spm|tiktoken|vocab|bpe)$)"
)


def name_of(token: Any) -> str:
    """The text of a token in tokenizer_config.json, which is a string or an object with "content"."""
    return token.get("content", "") if isinstance(token, Mapping) else str(token)


def no_tokenizer(where: str | Path, family: str, beside: frozenset[str], preset: str = "") -> str:
    """A warning for weights whose tokenizer was not found or cannot be read. beside: names of the files."""
    seen = sorted(name for name in beside if LIKE_A_TOKENIZER.match(name))
    if seen:
        why = "are not read with --preset" if preset else f"family '{family}' does not read as configured here"
        found = f"there is {', '.join(seen)}, which {why}"
    else:
        found = f"no file there looks like one, only {', '.join(sorted(beside)[:20]) or 'the weights'}"
    return (
        f"NO TOKENIZER was found for {where}: {found}. Known: {EXPECTED}. Texts must be given as ids, unless you add "
        "the file and read the weights again, or set config.tokenizer to the one that they were trained with."
    )


EXPECTED = (
    "vocab.json with merges.txt, tokenizer.json, vocab.txt, spiece.model, tokenizer.model, "
    "bpe_simple_vocab_16e6.txt.gz (docs/interop.md says which for which family)"
)


def hf_clip(beside: frozenset[str]) -> TokenizerConfig:
    """The tokenizer of transformers' CLIPModel. beside: names of the files; path "." is their folder."""
    if beside.issuperset(CLIP_FOLDER):
        return TokenizerConfig(name="clip_bpe", path=".")
    return tokenizer_json(beside)


def openai(beside: frozenset[str]) -> TokenizerConfig:
    """OpenAI's vocabulary file, which usually comes with the code and not with weights."""
    names = [name for name in OPENAI if name in beside]
    return TokenizerConfig(name="clip_bpe", path=names[0]) if names else TokenizerConfig()


def tokenizer_json(beside: frozenset[str], **rules: bool | int) -> TokenizerConfig:
    """tokenizer.json with further fields of TokenizerConfig; no tokenizer where the file is missing."""
    if "tokenizer.json" not in beside:
        return TokenizerConfig()
    return TokenizerConfig(name="hf", path="tokenizer.json", **rules)


def bert(beside: frozenset[str]) -> TokenizerConfig:
    """BERT's tokenizer.json, or its vocab.txt alone, as older models have it."""
    if "vocab.txt" in beside and "tokenizer.json" not in beside:
        return TokenizerConfig(name="hf", path="vocab.txt")
    return tokenizer_json(beside)


def open_clip(text: Mapping[str, Any], beside: frozenset[str]) -> TokenizerConfig:
    """The tokenizer of text_cfg: tokenizer.json where it has an hf_tokenizer_name, else OpenAI's vocabulary.

    No tokenizer if the file is missing or an option is not supported. Rules from open_clip tokenizer.py (HFTokenizer,
    get_tokenizer).
    """
    options, mode = dict(text.get("tokenizer_kwargs") or {}), text.get("tokenizer_mode")
    if not text.get("hf_tokenizer_name"):
        other = text.get("hf_model_name") or options or mode
        return TokenizerConfig() if other else openai(beside)
    clean, no_end = options.pop("clean", "whitespace"), options.pop("strip_sep_token", False)
    if clean not in CLEANING or options or mode:
        return TokenizerConfig()
    return tokenizer_json(beside, clean=True, eos_to_pad=no_end, **CLEANING[clean])


def own(description: Description) -> TokenizerConfig:
    """The tokenizer of an export of clipjax's in a format that says nothing of it; none for the files of others."""
    stored = description.files.get(OWN, {})
    return TokenizerConfig(**stored) if stored.get("path") in description.beside else TokenizerConfig()


def write_own(tokenizer: TokenizerConfig) -> dict[str, Any]:
    """What `own` reads, by the file's name; {} without a tokenizer."""
    return {OWN: vars(tokenizer) | {"path": Path(tokenizer.path).name}} if tokenizer.path else {}


def write_open_clip(tokenizer: TokenizerConfig) -> dict[str, Any]:
    """The entries of text_cfg for a tokenizer; {} for the one that open_clip uses by default."""
    write = WRITTEN.get(tokenizer.name)
    return write(tokenizer) if write and tokenizer.path else {}


def _tokenizer_json_entries(tokenizer: TokenizerConfig) -> dict[str, Any]:
    """open_clip reads tokenizer.json from the directory."""
    clean = "canonicalize" if tokenizer.canonicalize else "lower" if tokenizer.lowercase else "whitespace"
    options = {"clean": clean} if clean != "whitespace" else {}
    options |= {"strip_sep_token": True} if tokenizer.eos_to_pad else {}
    return {"hf_tokenizer_name": "tokenizer.json"} | ({"tokenizer_kwargs": options} if options else {})


WRITTEN = {"hf": _tokenizer_json_entries}  # kind of tokenizer -> how text_cfg describes it


def copy_tokenizer(path: str | Path, destination: Path) -> str:
    """Copies the files of config.tokenizer.path to destination. Returns their path, relative to it."""
    for file in files_of(path):
        shutil.copy(file, destination / file.name)
    return "." if Path(path).is_dir() else Path(path).name
