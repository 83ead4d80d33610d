"""Reads and writes PyTorch's .pt, .bin and TorchScript archives, without PyTorch and without executing pickle.

Such a file is a zip: data.pkl describes objects; data/0, data/1, ... hold the numbers. The description is a program for
pickle's machine, which could call any function. Here its instructions are read as data: dicts, lists, tuples and
tensors are built, a call of anything else yields an inert object, and nothing is imported or called.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clipjax.interop.archives import open_archive, read_member, read_part, refuse_special
from clipjax.interop.names import InteropError, Stored
from clipjax.interop.pickle_program import MAX_PROGRAM, Global, Inert, Tensor, interpret

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
CONTAINERS = (Inert, dict, list, tuple)  # what tensors may be in; a Tensor is a tuple, too
MAX_TENSORS = 150_000  # of one file
MAX_DEPTH = 100  # of containers in containers
MAX_NAME = 1000  # characters
MAX_RANK = 64  # NumPy's
FREE = 1 << 20  # elements that a tensor may have beyond those of its storage, because it repeats them (stride 0)


def open_torch(path: str | Path) -> dict[str, Stored]:
    """name -> every tensor of a file: a state dict, a checkpoint with one, a list of pairs, a TorchScript module.

    Keys are joined with dots, "state_dict.module.logit_scale": see state_dicts.py. Raises InteropError for a truncated
    or damaged file, a file from PyTorch before 1.6, one without tensors, and one beyond the limits of docs/interop.md.
    """
    path = Path(path)
    refuse_special(path)
    if not zipfile.is_zipfile(path):
        raise InteropError(
            f"{path} is truncated, or was written by PyTorch before 1.6. To convert an older file, load it with "
            "torch.load(..., weights_only=True) and save it with torch.save."
        )
    with open_archive(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        described = next((name for name in sizes if name.endswith("/data.pkl")), None)
        if described is None:
            raise InteropError(f"{path} is a zip archive without data.pkl: not a PyTorch file.")
        root = described.removesuffix("data.pkl")
        byteorder = read_member(archive, f"{root}byteorder", 100, path) if f"{root}byteorder" in sizes else b"little"
        content = interpret(read_member(archive, described, MAX_PROGRAM, path), path)
    if byteorder != b"little":
        raise InteropError(f"{path} has byte order {byteorder!r}; expected little.")
    tensors: dict[str, Tensor] = {}
    for name, tensor in _walk(content, path):
        if tensors.setdefault(name, tensor) is not tensor:
            raise InteropError(f"{path} has two tensors that are called {name!r}.")
        if len(tensors) > MAX_TENSORS:
            raise InteropError(f"{path} has more than {MAX_TENSORS:,} tensors, which is more than any model has.")
    if not tensors:
        raise InteropError(f"{path} has no tensors. Expected a state dict, or a checkpoint that holds one.")
    return {name: _stored(path, root, name, tensor, sizes) for name, tensor in tensors.items()}


def write_torch(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes a state dict as torch.save does, for torch.load with weights_only; each array keeps its dtype.

    arrays: (name, array) pairs, one at a time, with the shapes of `shapes`. The file is a dict of calls of
    `_rebuild_tensor_v2`, in pickle's protocol 2.
    """
    names = {dtype: name for name, dtype in STORAGES.items()}
    program = [pickle.PROTO + b"\2", pickle.EMPTY_DICT, pickle.MARK]
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for key, (name, array) in enumerate(arrays):
            array = np.asarray(array, order="C")
            if array.shape != tuple(shapes[name]):
                raise AssertionError(f"{name} {array.shape} came where {shapes[name]} was expected")
            with archive.open(f"model/data/{key}", "w", force_zip64=True) as file:
                file.write(array.data.cast("B") if array.size else b"")
            strides = [step // array.itemsize for step in array.strides]
            storage = [_string("storage"), _global("torch", names[array.dtype]), _string(str(key)), _string("cpu")]
            program += [
                _string(name),
                _global("torch._utils", "_rebuild_tensor_v2"),
                _tuple(
                    [_tuple([*storage, _integer(array.size)]) + pickle.BINPERSID, _integer(0)]
                    + [_tuple(map(_integer, array.shape)), _tuple(map(_integer, strides)), pickle.NEWFALSE]
                    + [_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE]
                ),
                pickle.REDUCE,
            ]
        archive.writestr("model/data.pkl", b"".join([*program, pickle.SETITEMS, pickle.STOP]))
        archive.writestr("model/byteorder", "little")
        archive.writestr("model/version", "3\n")


def _string(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x09" + value.to_bytes(9, "little")


def _tuple(items: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _walk(content: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, Tensor) of nested containers, each entered once. A list of pairs (name, tensor) is like a dict."""
    seen: set[int] = set()
    stack: list[Iterator[tuple[str, Any]]] = [iter([("", content)])]
    while stack:
        prefix, value = next(stack[-1], (None, None))
        if prefix is None:
            stack.pop()
        elif len(stack) > MAX_DEPTH or len(prefix) > MAX_NAME:
            raise InteropError(
                f"{path}: its description has more than {MAX_DEPTH} containers in each other, or names of more than "
                f"{MAX_NAME} characters: no model has those."
            )
        elif isinstance(value, Tensor):
            yield prefix, value
        elif isinstance(value, CONTAINERS) and not isinstance(value, Global) and id(value) not in seen:
            seen.add(id(value))
            stack.append(_children(value, prefix))


def _children(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Inert):
        yield prefix, value.state
        return
    if isinstance(value, dict):
        items = value.items()
    elif all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in value):
        items = value
    else:
        items = enumerate(value)
    for key, child in items:
        if isinstance(child, CONTAINERS):
            name = key[: MAX_NAME + 1] if isinstance(key, str) else f"{key!s:.30}" if type(key) is int else "?"
            yield f"{prefix}.{name}" if prefix else name, child


def _stored(path: Path, root: str, name: str, tensor: Tensor, sizes: dict[str, int]) -> Stored:
    kind, key, shape, strides = _checked(path, name, tensor)
    member = f"{root}data/{key}"
    dtype = STORAGES.get(kind.split()[-1])
    if dtype is None:  # refused where it is read: it may belong to an optimizer
        return Stored(shape, lambda: _refuse_type(f"{path}: {name}", kind))
    count = math.prod(shape)
    elements = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1 if count else 0
    available = sizes.get(member, -1) // dtype.itemsize
    if tensor.offset + elements > available:
        raise InteropError(f"{path} is damaged: {name} {list(shape)} is larger than its storage {member}.")
    if count > available + FREE:
        raise InteropError(f"{path}: {name} {list(shape)} repeats the {available:,} numbers of its storage {member}.")

    def read() -> np.ndarray:
        with open_archive(path, checked=True) as archive, archive.open(member) as file:
            flat = np.frombuffer(read_part(file, tensor.offset * dtype.itemsize, elements * dtype.itemsize), dtype)
            steps = tuple(stride * dtype.itemsize for stride in strides)
            return np.array(np.lib.stride_tricks.as_strided(flat, shape, steps))

    return Stored(shape, read)


def _checked(path: Path, name: str, tensor: Tensor) -> tuple[str, str, tuple[int, ...], tuple[int, ...]]:
    """(type of the storage, its key, shape, strides). Raises InteropError for a tensor that is no tensor."""
    storage, offset, shape, strides = tensor
    shape, strides = (each if isinstance(each, tuple | list) else None for each in (shape, strides))
    sound = (
        isinstance(storage, tuple)
        and len(storage) >= 3
        and isinstance(storage[1], Global)
        and isinstance(storage[2], str)
        and shape is not None
        and strides is not None
        and len(shape) == len(strides) <= MAX_RANK
        and all(type(n) is int and 0 <= n < 2**62 for n in (offset, *shape, *strides))
    )
    if not sound:
        raise InteropError(
            f"{path} is damaged: {name!r} is described by a shape, strides, an offset or a storage that no tensor has."
        )
    return storage[1].name, storage[2], tuple(shape), tuple(strides)


def _refuse_type(where: str, name: str) -> np.ndarray:
    raise InteropError(f"{where} has the unknown type {name}. Known: {', '.join(STORAGES)}.")
