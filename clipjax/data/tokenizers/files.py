"""The files that config.tokenizer.path stands for, of any kind of tokenizer."""

from __future__ import annotations

from pathlib import Path

from clipjax import storage

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
CLIP_FOLDER = ("vocab.json", "merges.txt")


def files_of(path: str | Path) -> list[Path]:
    """The files that exist of those that a tokenizer reads: the file itself, or the known names in its folder."""
    path = storage.as_path(path)
    folder = path if path.is_dir() else path.parent
    main = [*CLIP_FOLDER, "tokenizer.json"] if path.is_dir() else [path.name]
    settings = SETTINGS if path.is_dir() or path.name in ("tokenizer.json", "vocab.txt") else ()
    return [folder / name for name in (*main, *settings) if (folder / name).is_file()]
