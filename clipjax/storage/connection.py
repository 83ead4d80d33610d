"""The libraries behind each scheme, and how they are told to connect."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipjax.storage.errors import StorageError

if TYPE_CHECKING:
    import fsspec


@dataclass(frozen=True)
class Scheme:
    """One kind of bucket. library: the module that speaks to it; extra: of clipjax, which installs it."""

    service: str
    library: str
    extra: str


SCHEMES = {
    "gs": Scheme("Google Cloud Storage", "gcsfs", "gcs"),
    "s3": Scheme("Amazon S3 and servers like it", "s3fs", "s3"),
}
CONNECT_SECONDS = 15  # to open a connection
SILENCE_SECONDS = 30  # without a byte on an open one
TRIES = 6  # of a request that failed or was not answered, over half a minute; gcsfs has the same number
CONNECTIONS = 64  # at a time


def missing_extra(path: str | os.PathLike[str]) -> str:
    """What to say where the library for a remote path is not installed; "" where it is."""
    scheme = os.fspath(path).split("://", 1)[0]
    row = SCHEMES[scheme]
    if row.library in sys.modules or importlib.util.find_spec(row.library) is not None:
        return ""
    return f"{path} needs {row.library}, which is not installed: pip install 'clipjax[{row.extra}]'"


def require(path: str | os.PathLike[str]) -> None:
    """Raises StorageError where missing_extra has something to say; else prepares the libraries, once."""
    if message := missing_extra(path):
        raise StorageError(f"{message}.", "extra")
    _prepare()


def filesystem(path: str | os.PathLike[str]) -> fsspec.AbstractFileSystem:
    """The fsspec file system of a remote path, one in each process, thread and scheme; it caches no listings."""
    require(path)
    import fsspec

    fs = fsspec.filesystem(os.fspath(path).split("://", 1)[0])
    if fs.protocol[0] == "s3":
        fs.retries = 3  # of a body that broke off; botocore has tried each request TRIES times
    return fs


def shared_filesystem(path: str | os.PathLike[str]) -> fsspec.AbstractFileSystem:
    """filesystem(path) of the thread that asked first: many threads that read at the same time share connections."""
    key = os.getpid(), os.fspath(path).split("://", 1)[0]
    if key not in _SHARED:
        _SHARED[key] = filesystem(path)
    return _SHARED[key]


_SHARED: dict[tuple[int, str], fsspec.AbstractFileSystem] = {}


def forget_connections() -> None:
    """Closes nothing, and connects anew from here on: after a change of endpoints or credentials in this process."""
    _SHARED.clear()
    for name, row in SCHEMES.items():
        if row.library in sys.modules:
            import fsspec

            fsspec.get_filesystem_class(name).clear_instance_cache()
    if "etils.epath" in sys.modules:
        from etils.epath import backend

        backend.fsspec_backend._get_filesystem.cache_clear()


@functools.cache
def _prepare() -> None:
    """Sets what the libraries read when they are first used: no stale listings, bounded waits, no tracebacks."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # epath would import TensorFlow, where it is installed
    # gcsfs asks another service for each bucket's kind, which needs credentials; all kinds answer to plain HTTP but
    # zonal ones, for which a user sets this to "true".
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec.config

    for name, defaults in (("gs", _gcs_defaults), ("s3", _s3_defaults)):
        if importlib.util.find_spec(SCHEMES[name].library):
            own = fsspec.config.conf.setdefault(name, {})
            for key, value in defaults().items():
                own.setdefault(key, value)
    if "GCSFS_DEBUG" not in os.environ:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback before each error that it raises
        # It warns that this is no machine of Google's, also where the server needs no credentials.
        logging.getLogger("google.auth").setLevel(logging.ERROR)


def _gcs_defaults() -> dict[str, object]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return {"use_listings_cache": False, "requests_timeout": timeout}


def _s3_defaults() -> dict[str, object]:
    return {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": SILENCE_SECONDS,
            "max_pool_connections": CONNECTIONS,
            "retries": {"mode": "standard", "max_attempts": TRIES},
        },
    }
