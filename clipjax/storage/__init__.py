"""Paths in buckets (gs://, s3://) beside local ones: one module knows the schemes, the extras and the servers' errors.

The libraries (etils.epath, fsspec, gcsfs, s3fs) are imported when the first remote path is made, never for a local one.
"""

from clipjax.storage.connection import filesystem, forget_connections, missing_extra
from clipjax.storage.errors import StorageError, translating
from clipjax.storage.objects import (
    UPLOADING,
    check_whole,
    check_writable,
    glob,
    is_there,
    read_bytes,
    upload_file,
    upload_folder,
    write_bytes,
)
from clipjax.storage.paths import AnyPath, as_path, is_remote

__all__ = [
    "UPLOADING",
    "AnyPath",
    "StorageError",
    "as_path",
    "check_whole",
    "check_writable",
    "filesystem",
    "forget_connections",
    "glob",
    "is_remote",
    "is_there",
    "missing_extra",
    "read_bytes",
    "translating",
    "upload_file",
    "upload_folder",
    "write_bytes",
]
