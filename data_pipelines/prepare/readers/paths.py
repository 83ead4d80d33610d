"""Input files named by path or pattern."""

from __future__ import annotations

from pathlib import Path

from clipjax.files import glob_visible, hidden
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options


def input_files(options: Options, suffixes: tuple[str, ...]) -> list[str]:
    """The files that --input names, sorted, each once: files, patterns, and the files of these suffixes in folders.

    Raises PipelineError for an input that names no file.
    """
    all_files: set[str] = set()
    for name in options.input:
        paths = [Path(path) for path in glob_visible(name, recursive=True)] or [Path(name)]
        files = [
            str(file)
            for path in paths
            for file in (_visible_files(path) if path.is_dir() else [path])
            if file.is_file() and (path.is_file() or file.name.lower().endswith(suffixes))
        ]
        if not files:
            raise PipelineError(f"--input={name}: no file{' in it' if Path(name).is_dir() else ''} {_of(suffixes)}.")
        all_files.update(files)
    return sorted(all_files)


def _visible_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not hidden(path.relative_to(folder).as_posix()))


def one_input(options: Options) -> Path:
    """The one path of --input. Raises PipelineError unless there is exactly one, and it exists."""
    if len(options.input) != 1 or not Path(options.input[0]).exists():
        raise PipelineError(f"--input={','.join(options.input)}: --reader={options.reader} takes one path that exists.")
    return Path(options.input[0])


def short_names(files: list[str]) -> list[str]:
    """The names without their common folder, so that keys do not depend on where the data are."""
    if len(files) == 1:
        return [Path(files[0]).name]
    root = Path(files[0]).parent
    while not all(Path(file).is_relative_to(root) for file in files):
        root = root.parent
    return [Path(file).relative_to(root).as_posix() for file in files]


def _of(suffixes: tuple[str, ...]) -> str:
    return f"named *{', *'.join(suffixes)}" if suffixes else "by this name"
