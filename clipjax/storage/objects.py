"""Whole objects and folders of objects: written in one piece, published last, and refused where they are unfinished."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

from clipjax.storage.connection import filesystem
from clipjax.storage.errors import StorageError, translating

UPLOADING = ".uploading"  # the object in a folder whose upload has begun and not ended


def read_bytes(path: str | os.PathLike[str], limit: int = 0) -> bytes:
    """The bytes of an object, the first `limit` + 1 at most unless it is 0. Raises OSError, or StorageError."""
    with translating(path):
        fs, text = filesystem(path), os.fspath(path)
        if limit and fs.size(text) == 0:  # a range of an empty object does not exist
            return b""
        return fs.cat_file(text, start=0, end=limit + 1) if limit else fs.cat_file(text)


def glob(pattern: str) -> list[str]:
    """The objects and folders that match a shell pattern, whole paths in order; "**" goes through folders."""
    with translating(pattern):
        scheme = pattern.split("://", 1)[0]
        return sorted(f"{scheme}://{name}" for name in filesystem(pattern).glob(pattern))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes an object: readers see the old one or the new one, whatever happens. Raises StorageError."""
    with translating(path, writing=True):
        filesystem(path).pipe_file(os.fspath(path), data)


def upload_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Uploads a local file as one object: readers see the old object or the new one. Raises StorageError, OSError."""
    size = os.stat(source).st_size
    with translating(path, writing=True):
        fs, text = filesystem(path), os.fspath(path)
        fs.put_file(os.fspath(source), text)
        found = fs.size(text)
    if found != size:
        raise StorageError(f"{path}: {size:,} bytes were sent, but {found:,} arrived. Run it again.", "server")


def upload_folder(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Uploads the files of a local folder; while it does, an object UPLOADING in the remote one says so.

    check_whole refuses the folder until it is complete. What an earlier upload that broke off has left there is
    removed first; one that goes on is not disturbed. Raises FileExistsError for a folder that holds something else,
    StorageError, OSError.
    """
    from clipjax.storage.lease import LeaseHeldError, LeaseLostError, lease  # which local paths need not wait for

    text, source = os.fspath(path).rstrip("/"), Path(source)
    marker = f"{text}/{UPLOADING}"
    if is_there(path):
        raise FileExistsError(errno.EEXIST, "the folder exists already", str(path))
    try:
        with lease(marker) as held:
            with translating(path, writing=True):
                fs = filesystem(path)
                for name in fs.find(text):
                    if not name.endswith(f"/{UPLOADING}"):
                        fs.rm_file(name)
            for file in sorted(file for file in source.rglob("*") if file.is_file()):
                upload_file(file, f"{text}/{file.relative_to(source).as_posix()}")
            held.check()
    except LeaseHeldError as error:
        raise StorageError(f"{path}: {error.owner} is uploading this folder.", "unfinished") from error
    except LeaseLostError as error:
        raise StorageError(f"{path}: another upload ({error}) began while this one was suspended.") from error
    with translating(path, writing=True):
        fs.rm_file(marker)


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a local or remote path: a file, or a folder, but no upload that broke off.

    Raises StorageError.
    """
    if "://" not in os.fspath(path):
        return os.path.exists(path)
    text = os.fspath(path).rstrip("/")
    try:
        with translating(path):
            filesystem(path).info(text)
    except FileNotFoundError:
        return False
    from clipjax.storage.versions import read_version

    return read_version(f"{text}/{UPLOADING}") is None


def check_whole(path: str | os.PathLike[str]) -> None:
    """Raises StorageError for a remote folder that upload_folder has begun and not finished; not for a local one."""
    if "://" not in os.fspath(path):
        return
    from clipjax.storage.lease import describe
    from clipjax.storage.versions import read_version

    found = read_version(f"{os.fspath(path).rstrip('/')}/{UPLOADING}")
    if found is not None:
        raise StorageError(
            f"{path} is not complete: the upload by {describe(found)[:300]} is still going on or has failed. Wait for "
            "it, or run that command again.",
            "unfinished",
        )


def check_writable(path: str | os.PathLike[str]) -> None:
    """Writes, reads and deletes a small object in a remote folder. Raises StorageError where one of these fails."""
    probe = f"{os.fspath(path).rstrip('/')}/.probe-{uuid.uuid4().hex}"
    with translating(path, writing=True):
        fs = filesystem(path)
        fs.pipe_file(probe, b"clipjax")
        try:
            whole = fs.cat_file(probe) == b"clipjax"
        finally:
            fs.rm_file(probe)
    if not whole:
        raise StorageError(f"{path}: an object that was just written reads back differently.", "server")
