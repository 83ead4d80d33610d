"""One run per workdir: a lock that the kernel releases when its holder dies, however it dies; in a bucket, a lease."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import jax
from absl import logging

from clipjax import storage
from clipjax.storage import lease as leases

FILE = "run.lock"

# What flock reports if the file system has no locks: some FUSE and Lustre mounts, NFS without its lock service.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunLockError(RuntimeError):
    """The workdir belongs to another run, or cannot be written to."""


@contextmanager
def run_lock(workdir: str | Path) -> Iterator[Callable[[], None]]:
    """Holds workdir/run.lock, after creating the workdir. The file says who holds it, and is not removed.

    Yields a function that raises RunLockError where the workdir or the file is no longer there, or is another one.

    The first process of a run holds it for all of them. Raises RunLockError naming the other run, or why files cannot
    be written. After kill -9 the lock is free at once: the file's age and content do not matter. In a bucket, the file
    is a lease (clipjax.storage.lease), which expires a minute after its holder died on another machine.
    """
    if jax.process_index() != 0:
        yield lambda: None
        return
    with folder_lock(
        workdir,
        FILE,
        user="run",
        harm="Two runs would overwrite each other's checkpoints",
        keeps="a run keeps its checkpoints and metrics there",
    ) as check_held:
        yield check_held


@contextmanager
def folder_lock(workdir: str | Path, name: str, *, user: str, harm: str, keeps: str) -> Iterator[Callable[[], None]]:
    """Holds workdir/name as run_lock does, in this process; asks JAX nothing.

    user: what holds such a lock; harm: what two of them would do; keeps: why the folder must be writable. Raises
    RunLockError, and StorageError for a folder in a bucket that cannot be written to.
    """
    if storage.is_remote(workdir):
        with _lease(workdir, name, user, harm) as check:
            yield check
        return
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        with open(Path(workdir) / name, "a+", encoding="utf-8") as file:
            _lock(file, workdir, user, harm)
            _write_owner(file)
            held = os.dup(
                file.fileno()
            )  # the same lock, kept outside this `try`, which must not catch errors of the run
    except OSError as error:
        raise RunLockError(
            f"--workdir={workdir} cannot be written to ({error.strerror or error}); {keeps}. "
            "Use a folder that this user may write to, on a disk with room."
        ) from error
    folder = os.stat(workdir)
    try:
        yield lambda: _check_held(held, folder, Path(workdir), name, user)
    finally:
        os.close(held)


def _check_held(held: int, folder: os.stat_result, workdir: Path, name: str, user: str) -> None:
    """Raises RunLockError unless workdir is still `folder`, and its file `name` the one whose lock is held."""
    found_folder, found = _stat(workdir), _stat(workdir / name)
    if found is not None and os.path.samestat(found, os.fstat(held)):
        return
    if found_folder is None or not os.path.samestat(found_folder, folder):
        _remove_unfinished(workdir)
        what = f"--workdir={workdir} was removed or renamed under this {user}"
    elif found is None:
        what = f"{workdir / name} was removed under this {user}, so that a second {user} could start there"
    else:
        what = f"{workdir / name} was replaced under this {user}: {lock_owner(workdir) or 'nobody'} holds it now"
    raise RunLockError(
        f"{what}. It stopped and writes nothing more. Put the folder back and start the same command, which continues "
        "from the last checkpoint in it."
    )


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove_unfinished(workdir: Path) -> None:
    """Removes a workdir that a checkpoint on its way to a removed one has made again, if it holds nothing else."""
    paths = [path for pattern in ("*", "checkpoints/*") for path in workdir.glob(pattern)]
    if all(path.name == "checkpoints" or ".orbax-checkpoint-tmp" in path.name for path in paths):
        shutil.rmtree(workdir, ignore_errors=True)


@contextmanager
def _lease(workdir: storage.AnyPath | str, name: str, user: str, harm: str) -> Iterator[Callable[[], None]]:
    storage.check_writable(workdir)
    path = str(storage.as_path(workdir) / name)

    def check() -> None:
        try:
            held.check()
        except leases.LeaseLostError as error:
            what = (
                f"{path} was taken by {error.owner}, after this {user} did not renew it for {held.seconds:.0f} s: it "
                "was suspended, or could not reach the storage server"
                if error.owner
                else f"{path} was removed under this {user}, so that a second {user} could start there"
            )
            raise RunLockError(
                f"{what}. It stopped and writes nothing more. When no other {user} uses the folder, start the same "
                "command, which continues from the last checkpoint in it."
            ) from error

    with ExitStack() as stack:
        try:
            held = stack.enter_context(leases.lease(path))
        except leases.LeaseHeldError as error:
            raise RunLockError(_in_use(workdir, user, harm, error.owner)) from error
        yield check


def lock_owner(workdir: str | Path) -> str:
    """What workdir/run.lock says about the run that holds it now, from any process; "" where none does."""
    if storage.is_remote(workdir):
        return leases.owner_of(str(storage.as_path(workdir) / FILE))
    try:
        with open(Path(workdir) / FILE, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except OSError:
        pass
    return ""


def _lock(file: TextIO, workdir: str | Path, user: str, harm: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise RunLockError(_in_use(workdir, user, harm, file.read().strip() or "unknown")) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logging.warning("%s is on a file system without locks: a second %s in it would not be refused.", workdir, user)


def _in_use(workdir: str | Path, user: str, harm: str, owner: str) -> str:
    return (
        f"--workdir={workdir} is in use by another {user}: {owner}. "
        f"{harm}: use another --workdir, or stop that one first."
    )


def _write_owner(file: TextIO) -> None:
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}) + "\n")
    file.flush()
