"""Paths in buckets that a command line or an experiment gives: refused by name where they cannot be, fetched where a
library reads local files only."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clipjax import signals, storage
from clipjax.config import map_paths
from clipjax.config.fields import metadata
from clipjax.files import making_folder

T = TypeVar("T")
FLAGS = ("workdir", "out", "checkpoint", "data")  # of any command, whose values are paths
# Fields that name a run or a folder of embeddings; the others declare that they are paths.
FOLDERS = ("init_from", "init_image_from", "init_text_from", "loss.teacher", "data.image_embeddings",
           "data.teacher_embeddings")  # fmt: skip
BESIDE = 64 << 20
LARGEST = 256 << 20  # bytes of a tokenizer, or of files of names, that are fetched


def check_paths(named: Sequence[tuple[str, str | os.PathLike[str] | None]]) -> None:
    """Raises StorageError, with the flag's or the field's name, for a path that no command can read or write."""
    for name, path in named:
        if path:
            try:
                storage.as_path(path)
            except storage.StorageError as error:
                raise storage.StorageError(f"{name}={error}" if name else str(error), error.kind) from error


def check_config(config: Any) -> None:
    """check_paths of all paths in an experiment or an evaluation."""
    check_paths([(f"config.{name}", value) for name, value in _paths_in(config, "")])


def _paths_in(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _paths_in(value, f"{name}.")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from _paths_in(item, f"{name}.{key}.") if dataclasses.is_dataclass(item) else ()
        else:
            declared = metadata(type(config), field.name).get("declaration")
            # A dataset of TFDS may be a name; its folder is a path.
            if (declared and declared.path) or name in FOLDERS or field.name in ("path", "data_dir"):
                yield name, value


def refuse_remote(name: str, path: str, instead: str) -> None:
    """Raises StorageError for a path in a bucket where only a local one can be. instead: what to do, a sentence."""
    if path and storage.is_remote(path):
        raise storage.StorageError(f"{name}{path} is in a bucket; expected a path of this machine. {instead}", "path")


def with_local_files(config: T) -> T:
    """The configuration with copies on this machine of the small files that it names in buckets.

    Those are tokenizers and files of names, templates and prompts. The copies are in the user's cache, in folders that
    are named after what they hold. What does not exist stays as it is. Raises StorageError.
    """
    return map_paths(config, lambda name, value, kind: _copy_of(name, value) if kind == "own" else value)


def _copy_of(field: str, path: str) -> str:
    if not storage.is_remote(path):
        return path
    # Imported here, so that wrong flags are reported without JAX.
    from clipjax.data.tokenizers.files import files_of
    from clipjax.machine.compilation_cache import cache_root

    source = storage.as_path(path)
    folder = source.is_dir()
    if field == "tokenizer.path":
        files = files_of(source)
    else:
        files = [file for file in (source.iterdir() if folder else [source]) if file.is_file()]
    if not files:
        return path
    if (size := sum(file.stat().st_size for file in files)) > LARGEST:
        raise storage.StorageError(
            f"config.{field}={path} has {size:,} bytes, and files of its kind have {LARGEST:,} at most.", "path"
        )
    contents = {file.name: file.read_bytes() for file in sorted(files, key=lambda file: file.name)}
    digest = hashlib.sha256()
    for name, data in contents.items():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    kept = cache_root(os.environ) / "own_files" / "fetched" / digest.hexdigest()[:16]
    whole = kept / source.name if folder else kept
    if not whole.exists():
        # Another process of this machine may be as far; what it writes is the same.
        with contextlib.suppress(OSError), making_folder(whole) as temporary:
            for name, data in contents.items():
                (temporary / name).write_bytes(data)
    return str(kept / source.name)


@contextlib.contextmanager
def fetched(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A local path as it is; of a file or a folder in a bucket, a copy in a temporary folder, which is removed.

    With a file come the files beside it that have at most BESIDE bytes, such as its configuration. Raises StorageError,
    FileNotFoundError.
    """
    source = storage.as_path(path)
    if not storage.is_remote(path):
        yield source
        return
    temporary = Path(tempfile.mkdtemp(prefix="clipjax-download-"))
    try:
        with signals.tidying(lambda _: shutil.rmtree(temporary, ignore_errors=True)):
            with storage.translating(source):
                system, root = storage.filesystem(source), os.fspath(source).split("://", 1)[1].rstrip("/")
                local = temporary / source.name
                if source.is_dir():
                    storage.check_whole(source)
                    above, found = f"{root}/", system.find(root)
                else:
                    above = f"{root.rpartition('/')[0]}/"
                    system.info(root)  # refuses what is not there
                    beside = system.find(above, maxdepth=1, detail=True).values()
                    found = [info["name"] for info in beside if info["name"] == root or info["size"] <= BESIDE]
                    local = local.parent
                for name in found:
                    place = local / name.removeprefix(above)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(name, str(place))
            yield temporary / source.name
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
