"""The cache of this process for data from buckets: in which folder, how large, and which data are kept in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipjax.storage.block_cache import Blob, BlockCache, room_on
from clipjax.storage.errors import StorageError
from clipjax.storage.paths import is_remote
from clipjax.storage.ranges import read_range

GIB = 1 << 30
DEFAULT_GIB = 64.0


class _Settings:
    folder: Path | None = None
    limit: int = int(DEFAULT_GIB * GIB)
    claimed: dict[str, int]  # bytes of each object that is kept

    def __init__(self) -> None:
        self.claimed = {}


_settings = _Settings()


def use_cache(folder: str, gibibytes: float) -> None:
    """Sets where data from buckets are kept from now on, and how much of them. folder: "" is cache_folder's default.

    Raises StorageError for a folder in a bucket.
    """
    if is_remote(folder):
        raise StorageError(f"config.data.cache_dir={folder} must be on a local disk: it keeps data read from buckets.")
    chosen, limit = Path(folder).absolute() if folder else None, int(gibibytes * GIB)
    if (chosen, limit) != (_settings.folder, _settings.limit):
        _settings.folder, _settings.limit, _settings.claimed = chosen, limit, {}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the cache: config.data.cache_dir, or ~/.cache/clipjax/data (below XDG_CACHE_HOME, if it is set)."""
    if _settings.folder:
        return _settings.folder
    try:
        return cache_root(environ) / "data"
    except RuntimeError:  # no home
        return Path(tempfile.gettempdir()) / f"clipjax-data-{os.getuid()}"


def cache_limit() -> int:
    """Bytes that the cache may take: config.data.cache_gib, or half of what the disk has for it, if that is less."""
    return room_on(cache_folder(), _settings.limit)


def claim(blobs: Sequence[Blob]) -> BlockCache | None:
    """The cache for these objects, if all of them fit beside what this process keeps already; None if they do not.

    What does not fit would be removed before it is read again, and each fetch would be of a whole block.
    """
    new = {f"{blob.url}\0{blob.version}": blob.size for blob in blobs}
    limit = cache_limit()
    if sum((_settings.claimed | new).values()) > limit:
        return None
    _settings.claimed |= new
    return BlockCache(cache_folder(), limit, read_range)


def above_buckets(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is the parent of a bucket, in which there is nothing to look for."""
    return os.fspath(folder).rstrip("/") in ("gs:", "s3:")


def cache_root(environ: Mapping[str, str]) -> Path:
    """~/.cache/clipjax, or below XDG_CACHE_HOME. Raises RuntimeError where there is no home."""
    base = environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # relative ones are to be ignored, says XDG
    return root / "clipjax"
