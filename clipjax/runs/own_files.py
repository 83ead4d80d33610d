"""What makes a run's folder whole: copies of the small files that it reads, and where its data were.

    workdir/tokenizer/1a2b3c4d/emoji.model        config.tokenizer.path
            class_names/5e6f7a8b/names.txt        an evaluator's class_names; also templates and prompts

The configuration in config.json and in the checkpoints names the copies, relative to the workdir, so that a run can be
moved. Folders are named after the content: a file that changes gets a new copy, and earlier checkpoints keep theirs.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from clipjax import storage
from clipjax.config import ExperimentConfig, TokenizerConfig, map_paths
from clipjax.data.tokenizers.files import files_of
from clipjax.files import making_folder, replacing
from clipjax.machine.compilation_cache import cache_root
from clipjax.runs.steps import absolute
from clipjax.runs.stored_files import stored_files

LARGEST = 256 << 20  # bytes of files that are copied; larger ones are named where they are


class Kept(NamedTuple):
    """What checkpoints store: a configuration that names the run's own files, and how to read its paths."""

    config: ExperimentConfig
    paths: dict[str, Any]  # {"own": {field: the path as it was given}, "folder": ..., "above": ...}


def keep_files(config: ExperimentConfig, workdir: str | Path, *, copy: bool = True) -> Kept:
    """Copies the files that config names into workdir.

    copy: False on processes other than the first, which only compute the names.
    """
    workdir = absolute(workdir)
    own: dict[str, str] = {}

    def change(name: str, value: str, kind: str) -> str:
        files = _files(name, Path(value)) if kind == "own" else []
        if not files:
            return value
        place = f"{name.split('.')[0] if name == 'tokenizer.path' else name.rpartition('.')[2]}/{_digest(files)[:8]}"
        for file in files if copy else ():
            if not (workdir / place / file.name).exists():
                with replacing(workdir / place / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        own[name] = value
        return place if Path(value).is_dir() else f"{place}/{Path(value).name}"

    portable = map_paths(config, change)
    here = os.getcwd()
    above = "" if storage.is_remote(workdir) else os.path.relpath(here, workdir)
    # Where the run lies in the folder in which it was started, both may move together.
    inside = set(Path(above).parts) <= {".."}
    return Kept(portable, {"own": own, "folder": here, "above": above if inside else ""})


def located(config: ExperimentConfig, workdir: str | Path, paths: Mapping[str, Any]) -> ExperimentConfig:
    """A stored configuration with paths that can be opened from the current folder.

    The run's own files are those in workdir. Other relative paths start at the folder in which the run was started, if
    something is there, and else at the current folder. paths: Kept.paths; {} for a run without copies.
    """
    own, starts = paths.get("own", {}), _starts(workdir, paths)

    def change(name: str, value: str, kind: str) -> str:
        if name in own:
            copy = _here(storage.as_path(workdir), value)
            before = _found(own[name], starts)
            return str(copy) if copy.exists() or not Path(before).exists() else before
        return _found(value, starts)

    return map_paths(config, change)


def as_given(config: ExperimentConfig, paths: Mapping[str, Any]) -> ExperimentConfig:
    """A stored configuration with the paths that the run was started with, to compare with today's."""
    own = paths.get("own", {})
    return map_paths(config, lambda name, value, kind: own.get(name) or value)


def with_own_tokenizer(tokenizer: TokenizerConfig, workdir: Path | None) -> TokenizerConfig:
    """The tokenizer's configuration; of a file that is not there, the copy that the run in workdir keeps of it."""
    if workdir is None or not tokenizer.path or Path(tokenizer.path).exists():
        return tokenizer
    workdir, name = absolute(workdir), Path(tokenizer.path).name
    folders = (workdir / "tokenizer").iterdir() if (workdir / "tokenizer").is_dir() else ()
    places = [f"tokenizer/{folder.name}/{name}" for folder in folders if (folder / name).exists()]
    if len(places) != 1:
        return tokenizer
    copy = str(_here(workdir, places[0]))
    logging.warning("config.tokenizer.path=%s is not there: the run's copy %s is used.", tokenizer.path, copy)
    return TokenizerConfig(**{**vars(tokenizer), "path": copy})


def _here(workdir: Any, place: str) -> Path:
    """A run's own file or folder as a path of this machine: of one in a bucket, a copy in the user's cache.

    place: its path in the workdir; its first two parts are a folder that is named after its content.
    """
    if not storage.is_remote(workdir):
        return workdir / place
    run = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    root, folder = cache_root(os.environ) / "own_files" / run, "/".join(place.split("/")[:2])
    if not (root / folder).exists() and (files := [*stored_files(workdir / folder)]):
        try:
            with making_folder(root / folder) as temporary:
                for name in files:
                    (temporary / name).write_bytes((workdir / folder / name).read_bytes())
        except OSError:
            if not (root / folder).exists():  # else another process of this machine was faster
                raise
    return root / place


def _files(field: str, path: Path) -> list[Path]:
    """The files to copy; none where there are none, or they are too large."""
    if field == "tokenizer.path":
        files = files_of(path)
    else:
        files = sorted(path.glob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    return files if sum(file.stat().st_size for file in files) <= LARGEST else []


def _digest(files: list[Path]) -> str:
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return content.hexdigest()


def _starts(workdir: str | Path, paths: Mapping[str, Any]) -> list[str]:
    """The folders at which a run's relative paths may start, the most likely first."""
    moved = paths.get("above") and not storage.is_remote(workdir)
    above = os.path.normpath(os.path.join(os.path.abspath(workdir), paths["above"])) if moved else ""
    return [start for start in (above, paths.get("folder", "")) if start]


def fixed_part(path: str, start: str = "") -> str:
    """The folder above a pattern; other paths as they are, and what is there under that name.

    start: the folder at which the path starts, whose own name is no pattern.
    """
    while (glob.has_magic(path) or "{" in path) and not os.path.exists(os.path.join(start, path)):
        path = os.path.dirname(path)
    return path


def _found(path: str, starts: list[str]) -> str:
    """A path that starts at the first of the folders in which there is something; unchanged where there is nothing."""
    if os.path.isabs(path) or "://" in path:
        return path
    for start in starts:
        whole = os.path.join(start, path)
        if os.path.exists(os.path.join(start, fixed_part(path, start))):
            return path if os.path.abspath(path) == os.path.abspath(whole) else whole
    return path
