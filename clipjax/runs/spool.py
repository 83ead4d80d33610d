"""Files of a run in a bucket that grow: kept in a folder of this machine, and uploaded whole.

Nothing can be appended to an object, so that metrics.jsonl, goodput.jsonl, bad_records.jsonl, TensorBoard's events and
profiles are written in

    ~/.cache/clipjax/spool/<digest of the workdir's URL>/<process>/<name of the run>/

and uploaded just before each checkpoint becomes whole, and at the end: with a checkpoint, the bucket has the curve up
to its step. A run that is started again takes the bucket's files; where this machine has more of the same file, because
a killed run wrote on after its last upload, it keeps its own. The folder is removed once all of it is in the bucket.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import jax
from absl import logging

from clipjax import signals, storage
from clipjax.files import replacing
from clipjax.machine.compilation_cache import cache_root
from clipjax.runs.lock import RunLockError
from clipjax.runs.stored_files import stored_files

SINKS = "sinks"  # the folder with the ids that other loggers gave the run


class Spool:
    """Where a run writes its files that grow: `folder`. In a run that is not in a bucket, that is its workdir."""

    def __init__(self, workdir: str | PurePath, check_held: Callable[[], None] = lambda: None):
        """Fetches the bucket's files; all processes make one, each its own. check_held: see spooled."""
        self._check_held = check_held
        self.workdir = storage.as_path(workdir)
        self.remote = storage.is_remote(self.workdir)
        self.folder = self.workdir
        self._sent: dict[str, tuple[int, int]] = {}  # file -> (size, time) of what the bucket has
        self._others: set[str] = set()  # files of other processes, which are here to be read
        self._lock = threading.Lock()  # Orbax's thread uploads as well
        if self.remote:
            name = hashlib.sha256(str(self.workdir).encode()).hexdigest()[:16]
            self.folder = cache_root(os.environ) / "spool" / name / str(jax.process_index()) / self.workdir.name
            self.folder.mkdir(parents=True, exist_ok=True)
            self._fetch()

    def upload(self) -> None:
        """Uploads this process's files that have changed since, if the workdir is still this run's.

        Raises OSError as storage does, and RunLockError as check_held does.
        """
        if not self.remote:
            return
        self._check_held()
        with self._lock:
            for name in sorted(self._files() - self._others):
                path = self.folder / name
                stamp = _stamp(path)
                if self._sent.get(name) != stamp:
                    with replacing(self.workdir / name) as temporary:
                        temporary.write_bytes(_whole_lines(path))
                    self._sent[name] = stamp

    def before_save(self, save: Callable[..., None]) -> Callable[..., None]:
        """save, before which processes other than the first upload; the first does so before a checkpoint is whole."""

        def call(*args: Any, **kwargs: Any) -> None:
            if jax.process_index():
                self.upload()
            save(*args, **kwargs)

        return call

    def remove(self) -> None:
        """Removes the folder, once everything has been uploaded."""
        if self.remote:
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            with contextlib.suppress(OSError):  # other processes of the run have theirs beside it
                self.folder.parent.parent.rmdir()

    def _files(self) -> set[str]:
        paths = self.folder.rglob("*")
        return {path.relative_to(self.folder).as_posix() for path in paths if path.is_file() and not path.is_symlink()}

    def _fetch(self) -> None:
        """Makes the folder hold what the bucket has, or what this machine has written on."""
        process, found = jax.process_index(), self.workdir.is_dir()
        top = [path for path in self.workdir.iterdir() if path.suffix == ".jsonl"] if found else []
        own = f"bad_records-{process}.jsonl" if process else "bad_records.jsonl"
        fetched = {path.name for path in top if process == 0 or path.name.startswith("bad_records")}
        self._others = {name for name in fetched if name.startswith("bad_records") and name != own}
        if process == 0:
            fetched |= {f"{SINKS}/{name}" for name in stored_files(self.workdir / SINKS)}
        folders = {name.partition("/")[0] for name in self._files() if "/" in name}
        sizes = {
            f"{folder}/{name}": file.bytes
            for folder in folders
            for name, file in stored_files(self.workdir / folder).items()
        }
        for name in self._files() - fetched:
            path = self.folder / name
            if name not in sizes:
                path.unlink()  # of an earlier run in the same place
            elif path.stat().st_size <= sizes[name]:
                self._sent[name] = _stamp(path)
        for name in fetched:
            data, local = (self.workdir / name).read_bytes(), self.folder / name
            if not (local.is_file() and data and local.read_bytes().startswith(data)):
                local.parent.mkdir(exist_ok=True)
                local.write_bytes(data)
                self._sent[name] = _stamp(local)


@contextlib.contextmanager
def spooled(workdir: str | PurePath, check_held: Callable[[], None]) -> Iterator[Spool]:
    """A Spool that is uploaded at the end of the block, also after an error or a signal.

    check_held: raises RunLockError where the workdir is no longer this run's; then nothing is uploaded.
    """
    spool = Spool(workdir, check_held)
    with signals.tidying(lambda name: _try(spool, check_held)):
        try:
            yield spool
        except RunLockError:
            raise
        except BaseException:
            _try(spool, check_held)
            raise
    try:
        spool.upload()
    except OSError as error:
        raise storage.StorageError(
            f"{error}\nThe run's last lines are in {spool.folder}: the same command on this machine uploads them."
        ) from error
    spool.remove()


@contextlib.contextmanager
def local_folder(folder: PurePath) -> Iterator[Path]:
    """A folder to write new files to: `folder` itself, or one whose files are uploaded to the bucket afterwards."""
    if not storage.is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        for path in Path(temporary).iterdir():
            with replacing(folder / path.name) as target:
                shutil.copyfile(path, target)


def _try(spool: Spool, check_held: Callable[[], None]) -> None:
    try:
        check_held()
        spool.upload()
    except Exception as error:  # the run's own error, or its signal, is what is told
        logging.warning("The last lines of the run are in %s, but not in %s: %s", spool.folder, spool.workdir, error)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _whole_lines(path: Path) -> bytes:
    """A file's bytes; of lines, those that are whole, while another thread may be writing one."""
    data: Any = path.read_bytes()
    return data[: data.rfind(b"\n") + 1] if path.suffix == ".jsonl" else data
