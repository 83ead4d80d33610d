"""NumPy's .npz archives of arrays, opened without reading the numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clipjax.interop.archives import open_archive
from clipjax.interop.names import InteropError, Stored

MAX_ARRAYS = 150_000  # of one file
BFLOAT16 = np.dtype("V2")  # NumPy has no bfloat16 and stores it as two raw bytes; big_vision's files have such arrays
NUMBERS = "fiub"  # kinds of dtype that weights may have


def open_npz(path: str | Path) -> dict[str, Stored]:
    """name -> array, in the file's order. Raises InteropError for a damaged file, and for one of Python objects."""
    path = Path(path)
    result: dict[str, Stored] = {}
    with open_archive(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise InteropError(f"{path} has {len(members):,} arrays, the limit is {MAX_ARRAYS:,}.")
        for info in members:
            with archive.open(info) as file:
                shape, _, dtype = _header(file)
                header = file.tell()
            if dtype.hasobject:
                raise InteropError(f"{path}: {info.filename!r} holds Python objects (pickle), which are not read.")
            if min(shape, default=0) < 0 or info.file_size != header + math.prod(shape) * dtype.itemsize:
                raise InteropError(f"{path} is damaged: {info.filename!r} {list(shape)} has {info.file_size} bytes.")
            name = info.filename.removesuffix(".npy")
            if name in result:
                raise InteropError(f"{path} has two arrays that are called {name!r}.")
            result[name] = Stored(shape, lambda member=info.filename: _read(path, member))
    return result


def _read(path: Path, member: str) -> np.ndarray:
    with open_archive(path, checked=True) as archive, archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        if dtype.kind not in NUMBERS and dtype != BFLOAT16:
            raise InteropError(f"{path}: {member!r} has the type {dtype}; expected numbers.")
        flat = np.frombuffer(file.read(), dtype)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return np.array(array.view(ml_dtypes.bfloat16) if dtype == BFLOAT16 else array)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    one = version == (1, 0)
    return (np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0)(file)
