"""The .safetensors format: 8 bytes little-endian length, a JSON header, then the numbers, one tensor after another.

Tensors are read and written one at a time, so a model may be larger than the host's memory. The format's own package
needs all arrays in memory to write them; the tests compare with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from clipjax.interop.names import InteropError, Stored

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
MAX_HEADER = 100_000_000  # bytes, the format's own limit


def open_safetensors(path: str | Path) -> dict[str, Stored]:
    """name -> tensor, in the file's order. Raises InteropError for a damaged or truncated file."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise InteropError(f"{path} is truncated, or not a safetensors file: {size} bytes, header of {length}.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            other = next(((name, e["dtype"]) for name, e in header.items() if e["dtype"] not in DTYPES), None)
            if other:  # 8-bit floats mean nothing without the scales that each program keeps elsewhere
                raise InteropError(
                    f"{path}: tensor {other[0]} is of type {other[1]}; expected one of {', '.join(DTYPES)}. "
                    "Convert the weights to 16 or 32 bits with the program that wrote them."
                )
            entries = [(name, DTYPES[e["dtype"]], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()]
        except InteropError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InteropError(f"{path} has a damaged header: {type(error).__name__} {error}.") from error
    start, needed = 8 + length, 8 + length + max((end for *_, end in entries), default=0)
    if needed != size:
        raise InteropError(f"{path} is truncated or damaged: it has {size} bytes, and its header describes {needed}.")
    result = {}
    for name, dtype, shape, begin, end in entries:
        count = int(np.prod(shape, dtype=np.int64))
        if end - begin != count * dtype.itemsize:
            raise InteropError(f"{path} is damaged: {name} {list(shape)} has {end - begin} bytes.")

        def read(dtype=dtype, shape=shape, count=count, offset=start + begin) -> np.ndarray:
            return np.fromfile(path, dtype, count, offset=offset).reshape(shape)

        result[name] = Stored(shape, read)
    return result


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
