"""etils.epath's path for buckets, on this package's connections and with its errors; imported for remote paths only."""

from __future__ import annotations

import datetime
import io
import stat
from collections.abc import Iterator
from typing import Any

from etils import epath
from etils.epath import backend, gpath, stat_utils

from clipjax.storage import objects
from clipjax.storage.connection import filesystem
from clipjax.storage.errors import translating


@epath.register_path_cls(("gs://", "s3://"))  # Orbax and others make their own paths from strings
class RemotePath(gpath.PosixGPath):
    """A path gs://bucket/x or s3://bucket/x with pathlib's methods. Its errors are StorageError, or plain OSErrors."""

    @property
    def _backend(self) -> backend.Backend:
        return _BACKEND if self._uri_scheme else super()._backend

    def read_bytes(self) -> bytes:
        return objects.read_bytes(self)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        objects.write_bytes(self, data)
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None, **_: Any) -> int:
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)


class _Stat(stat_utils.StatResult):
    """epath's facts of an object, under os.stat_result's names too."""

    st_size = property(lambda self: self.length)
    st_mtime = property(lambda self: self.mtime)
    st_mode = property(lambda self: (stat.S_IFDIR if self.is_directory else stat.S_IFREG) | 0o644)


class _Backend(backend._FileSystemSpecBackend):
    """epath's backend on fsspec, but: permission denied is not "no such file", and half a file is never uploaded."""

    def fs(self, path):
        return filesystem(path)

    def open(self, path, mode):
        binary = "b" in mode
        if "a" in mode or "+" in mode:
            raise io.UnsupportedOperation(f"{path}: an object in a bucket cannot be appended to")
        if "r" in mode:
            with translating(path):
                file = self.fs(path).open(path, mode="rb")
            return file if binary else io.TextIOWrapper(file, encoding="utf-8")
        return _Bytes(path) if binary else _Text(path)

    def exists(self, path):
        return self._info(path) is not None

    def isdir(self, path):
        info = self._info(path)
        return info is not None and info["type"] == "directory"

    def listdir(self, path):
        with translating(path):
            fs = self.fs(path)
            own = fs._strip_protocol(str(path)).rstrip("/")
            found = fs.ls(path, detail=True)
            if [(row["name"].rstrip("/"), row["type"]) for row in found] == [(own, "file")]:
                if not found[0]["name"].endswith("/"):
                    raise NotADirectoryError(path)
            names = [row["name"].rstrip("/") for row in found]
        return [name.rsplit("/", 1)[-1] for name in names if name != own]

    def stat(self, path) -> stat_utils.StatResult:
        with translating(path):
            info = self.fs(path).info(path)
        folder = info["type"] == "directory"
        changed = info.get("mtime") or info.get("LastModified")
        mtime = int(changed.timestamp()) if isinstance(changed, datetime.datetime) else int(changed or 0)
        return _Stat(is_directory=folder, length=info["size"] or 0, mtime=mtime, owner=None, group=None, mode=None)

    def _info(self, path) -> dict[str, Any] | None:
        try:
            with translating(path):
                return self.fs(path).info(path)
        except FileNotFoundError:
            return None


def _translated(name: str, writing: bool):
    method = getattr(backend._FileSystemSpecBackend, name)

    def call(self, path, *args, **kwargs):
        with translating(path, writing=writing):
            return method(self, path, *args, **kwargs)

    return call


for _name in ("glob", "rmtree", "remove", "rename", "replace", "copy"):
    setattr(_Backend, _name, _translated(_name, writing=False))


def _walk(self, top, *, top_down=True, on_error=None) -> Iterator[tuple[Any, list[str], list[str]]]:
    with translating(top):
        yield from backend._FileSystemSpecBackend.walk(self, top, top_down=top_down, on_error=on_error)


def _no_folder(self, path, *, exist_ok=False, mode=None) -> None:
    """A bucket has no folders to make: there is one where an object's name goes through it."""
    if not exist_ok and self.exists(path):
        raise FileExistsError(17, "File exists", str(path))


_Backend.walk = _walk
_Backend.mkdir = _Backend.makedirs = _no_folder


class _Whole:
    """Keeps what is written in memory and uploads it when it is closed, unless its `with` block failed."""

    def __init__(self, path) -> None:
        super().__init__()
        self._path = path

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            self._path = None
        self.close()

    def close(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            value = self.getvalue()
            objects.write_bytes(path, value.encode() if isinstance(value, str) else value)
        super().close()

    def __del__(self) -> None:
        self._path = None  # never closed: nobody said that it is whole


class _Bytes(_Whole, io.BytesIO):
    pass


class _Text(_Whole, io.StringIO):
    pass


_BACKEND = _Backend()
