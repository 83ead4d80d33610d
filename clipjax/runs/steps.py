"""Which checkpoints of a run are whole: in a folder by their name, in a bucket by the marker that is written last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

from absl import logging

from clipjax import storage
from clipjax.json_files import read_json_object
from clipjax.runs.orbax_buckets import MARKER

FOLDER = "checkpoints"
ORBAX_METADATA = "_CHECKPOINT_METADATA"
TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of unfinished checkpoints in a folder
CURE = f"If it is whole, write an empty object {MARKER} into it."
THREADS = 8  # requests at a time


def checkpoints_of(workdir: str | PurePath) -> Any:
    """workdir/checkpoints, as an absolute path or one in a bucket."""
    return absolute(workdir) / FOLDER


def absolute(path: str | PurePath) -> Any:
    """An absolute path, or one in a bucket."""
    path = storage.as_path(path)
    return path if storage.is_remote(path) else path.absolute()


def whole_steps(directory: PurePath) -> list[int]:
    """The steps of the whole checkpoints in a run's folder of checkpoints, in order; [] without the folder."""
    return sorted(int(folder.name) for folder, whole in _step_folders(directory) if whole)


def is_whole(folder: Any) -> bool:
    """Whether a checkpoint is there, and was finished."""
    return (folder / MARKER).exists() if storage.is_remote(folder) else folder.exists()


def unfinished(directory: PurePath) -> list[Any]:
    """The folders of checkpoints that are being written, or whose writing was cut short."""
    if storage.is_remote(directory):
        return [folder for folder, whole in _step_folders(directory) if not whole]
    return list(storage.as_path(directory).glob(f"*{TEMPORARY}*"))


def all_but_marked(directory: PurePath) -> list[Any]:
    """The folders in a bucket that lack nothing but their marker, as Orbax's own file in them says.

    Their run was cut short in that moment, or they were copied without the marker. They are not used, nor removed.
    """
    folders = unfinished(directory) if storage.is_remote(directory) else []
    return [folder for folder in folders if read_json_object(folder / ORBAX_METADATA).get("commit_timestamp_nsecs")]


def remove_unfinished(directory: PurePath) -> None:
    """Removes what a killed run has left of checkpoints in a bucket; Orbax does this in a folder.

    The process that holds the run's lock calls this.
    """
    if not storage.is_remote(directory):
        return
    kept = all_but_marked(directory)
    for folder in unfinished(directory):
        if folder in kept:
            logging.warning("%s has no %s and is not used. %s", folder, MARKER, CURE)
        else:
            logging.info("%s was not finished: removed", folder)
            folder.rmtree(missing_ok=True)


def _step_folders(directory: PurePath) -> list[tuple[Any, bool]]:
    """(folder, whether it is whole) of all that are named by a step."""
    try:
        folders = [path for path in storage.as_path(directory).iterdir() if path.name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    if not storage.is_remote(directory):
        return [(folder, True) for folder in folders]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(zip(folders, pool.map(is_whole, folders), strict=True))
