"""The .safetensors format: 8 bytes little-endian length, a JSON header, then the numbers, one tensor after another.

Tensors are read and written one at a time, so a model may be larger than the host's memory. The format's own package
needs all arrays in memory to write them; the tests compare with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from clipjax.config.errors import shown
from clipjax.interop.archives import refuse_special
from clipjax.interop.names import InteropError, Stored
from clipjax.json_files import MAX_JSON, parse_json

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER = MAX_JSON  # bytes; those of the largest models have less than 1 MB for thousands of tensors
MAX_RANK = 64  # NumPy's


def open_safetensors(path: str | Path) -> dict[str, Stored]:
    """name -> tensor, in the file's order. Raises InteropError for a damaged or truncated file.

    As the format says, the tensors' bytes follow each other without holes, and all bytes of the file belong to one.
    """
    path = Path(path)
    refuse_special(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InteropError(f"{path} is truncated, or not a safetensors file: {size} bytes, header of {length}.")
        if length > MAX_HEADER:
            raise InteropError(f"{path} has a header of {length:,} bytes, the limit is {MAX_HEADER:,}.")
        text = file.read(length)
    entries = _entries(text, path)
    start, needed = 8 + length, 8 + length + max((end for *_, end in entries), default=0)
    if needed != size:
        raise InteropError(f"{path} is truncated or damaged: it has {size} bytes, and its header describes {needed}.")
    result, last = {}, 0
    for name, dtype, shape, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        count = math.prod(shape)
        if end - begin != count * dtype.itemsize:
            raise InteropError(f"{path} is damaged: {name!r} {list(shape)} has {end - begin} bytes.")
        if begin != last:
            raise InteropError(
                f"{path} is damaged: {name!r} begins at byte {begin} of the numbers, but the one before ends at {last}."
            )
        last = end
    for name, dtype, shape, begin, _ in entries:

        def read(dtype=dtype, shape=shape, offset=start + begin) -> np.ndarray:
            array = np.fromfile(path, dtype, math.prod(shape), offset=offset)
            if array.size != math.prod(shape):
                raise InteropError(f"{path} is truncated: it has become shorter since it was opened.")
            return array.reshape(shape)

        result[name] = Stored(shape, read)
    return result


def _entries(text: bytes, path: Path) -> list[tuple[str, np.dtype, tuple[int, ...], int, int]]:
    """(name, dtype, shape, first and last byte) of each tensor. Raises InteropError for a damaged header."""
    try:
        header = parse_json(text, MAX_HEADER)
    except ValueError as error:
        raise InteropError(f"{path} has a damaged header: {error}.") from error
    if not isinstance(header, dict):
        raise InteropError(f"{path} has a damaged header: {shown(header)}, expected an object.")
    header.pop("__metadata__", None)
    entries = []
    for name, entry in header.items():
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = (fields.get(field) for field in ("dtype", "shape", "data_offsets"))
        if isinstance(dtype, str) and dtype not in DTYPES:
            # 8-bit floats mean nothing without the scales that each program keeps elsewhere.
            raise InteropError(
                f"{path}: tensor {name} is of type {dtype}; expected one of {', '.join(DTYPES)}. "
                "Convert the weights to 16 or 32 bits with the program that wrote them."
            )
        numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
        if not isinstance(dtype, str) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise InteropError(f"{path} has a damaged header: {name!r} is described by {shown(entry)}.")
        if len(offsets) != 2 or len(shape) > MAX_RANK:
            raise InteropError(f"{path} has a damaged header: {name!r} is described by {shown(entry)}.")
        entries.append((name, DTYPES[dtype], tuple(shape), *offsets))
    return entries


def write_safetensors(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes (name, float32 array) pairs, which come one at a time in the order of `shapes`."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, array), expected in zip(arrays, shapes, strict=True):
            if name != expected or array.shape != tuple(shapes[name]):
                raise AssertionError(f"{name} {array.shape} came where {expected} {shapes[expected]} was expected")
            np.ascontiguousarray(array, "<f4").tofile(file)
