"""Files of a run in a bucket that grow: kept in a folder of this machine, and uploaded whole.

Nothing can be appended to an object, so that metrics.jsonl, bad_records.jsonl and TensorBoard's events are written in

    ~/.cache/clipjax/spool/<digest of the workdir's URL>/<process>/

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

EVENTS = "tensorboard"


class Spool:
    """Where a run writes its files that grow: `folder`. In a run that is not in a bucket, that is its workdir."""

    def __init__(self, workdir: str | PurePath):
        """Fetches the bucket's files; all processes make one, each its own."""
        self.workdir = storage.as_path(workdir)
        self.remote = storage.is_remote(self.workdir)
        self.folder = self.workdir
        self.before: list[Callable[[], None]] = []  # called before an upload, as to write what is buffered
        self._sent: dict[str, tuple[int, int]] = {}  # file -> (size, time) of what the bucket has
        self._lock = threading.Lock()  # Orbax's thread uploads as well
        if self.remote:
            name = hashlib.sha256(str(self.workdir).encode()).hexdigest()[:16]
            self.folder = cache_root(os.environ) / "spool" / name / str(jax.process_index())
            self.folder.mkdir(parents=True, exist_ok=True)
            self._fetch()

    def upload(self) -> None:
        """Uploads this process's files that have changed since. Raises OSError as storage does."""
        if not self.remote:
            return
        for call in self.before:
            call()
        with self._lock:
            for name in self._own_files():
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
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # other processes of the run have theirs beside it
                self.folder.parent.rmdir()

    def _own_files(self) -> list[str]:
        """The files that this process writes; others' bad records are here to be read."""
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        return sorted(name for name in names if self._is_own(name))

    def _is_own(self, name: str) -> bool:
        process = jax.process_index()
        if name.startswith("bad_records"):
            return name == (f"bad_records-{process}.jsonl" if process else "bad_records.jsonl")
        return process == 0

    def _fetch(self) -> None:
        """Makes the folder hold what the bucket has, or what this machine has written on."""
        if not self.workdir.is_dir():
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            return
        lines = {path.name: path for path in self.workdir.iterdir() if path.suffix == ".jsonl"}
        sizes = {f"{EVENTS}/{name}": file.bytes for name, file in stored_files(self.workdir / EVENTS).items()}
        for name in set(self._own_files()) - lines.keys():
            path = self.folder / name
            if name not in sizes:
                path.unlink()  # of an earlier run in the same place
            elif path.stat().st_size <= sizes[name]:
                self._sent[name] = _stamp(path)
        for name, path in lines.items():
            if not (self._is_own(name) or name.startswith("bad_records")):
                continue
            data, local = path.read_bytes(), self.folder / name
            if local.is_file() and len(data) and local.read_bytes().startswith(data):
                continue
            local.write_bytes(data)
            self._sent[name] = _stamp(local)


@contextlib.contextmanager
def spooled(workdir: str | PurePath, check_held: Callable[[], None]) -> Iterator[Spool]:
    """A Spool that is uploaded at the end of the block, also after an error or a signal.

    check_held: raises RunLockError where the workdir is no longer this run's; then nothing is uploaded.
    """
    spool = Spool(workdir)
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
        logging.warning("What the run wrote last is in %s, and not in %s: %s", spool.folder, spool.workdir, error)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _whole_lines(path: Path) -> bytes:
    """A file's bytes; of lines, those that are whole, while another thread may be writing one."""
    data: Any = path.read_bytes()
    return data[: data.rfind(b"\n") + 1] if path.suffix == ".jsonl" else data
