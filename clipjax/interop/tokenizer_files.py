"""The tokenizer beside weights: which of its files says what, and all of them copied together."""

from __future__ import annotations

import shutil
from pathlib import Path

from clipjax.config import TokenizerConfig

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
CLIP_FOLDER = ("vocab.json", "merges.txt")
OPENAI = ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")


def hf_clip(beside: frozenset[str]) -> TokenizerConfig:
    """Of transformers' CLIPModel; path "." is the folder itself."""
    if beside.issuperset(CLIP_FOLDER):
        return TokenizerConfig(name="clip_bpe", path=".")
    return tokenizer_json(beside)


def openai(beside: frozenset[str]) -> TokenizerConfig:
    """OpenAI's and OpenCLIP's vocabulary file, which comes with their code and seldom lies beside weights."""
    found = [name for name in OPENAI if name in beside]
    return TokenizerConfig(name="clip_bpe", path=found[0]) if found else TokenizerConfig()


def tokenizer_json(beside: frozenset[str], **rules: bool | int) -> TokenizerConfig:
    """Whatever the file says, and rules; without the file none."""
    found = "tokenizer.json" in beside
    return TokenizerConfig(name="hf", path="tokenizer.json", **rules) if found else TokenizerConfig()


def copy_tokenizer(path: str | Path, destination: Path) -> str:
    """Copies the files of config.tokenizer.path into destination; returns their path there."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    main = [*CLIP_FOLDER, "tokenizer.json"] if path.is_dir() else [path.name]
    settings = SETTINGS if path.is_dir() or path.name == "tokenizer.json" else ()
    for name in (*main, *settings):
        if (folder / name).is_file():
            shutil.copy(folder / name, destination / name)
    return "." if path.is_dir() else path.name
