"""Reads and writes PyTorch's .pt, .bin and TorchScript archives, without PyTorch and without executing pickle.

Such a file is a zip: data.pkl describes objects; data/0, data/1, ... hold the numbers. The description is a program for
pickle's machine, which could call any function. Here its instructions are read as data: dicts, lists, tuples and
tensors are built, a call of anything else yields an inert object, and nothing is imported or called.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clipjax.interop.names import InteropError, Stored

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
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "LONG", "INT", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)


class Global(NamedTuple):
    """A name that pickle would import; here it stays a name."""

    name: str  # "torch FloatStorage"


class Tensor(NamedTuple):
    """A tensor as data.pkl describes it."""

    storage: tuple  # ("storage", Global, key, device, elements)
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


class Inert:
    """Takes the place of an object of an unknown class, and of what an unknown function would return."""

    state: Any = None


def open_torch(path: str | Path) -> dict[str, Stored]:
    """name -> every tensor of a file: a state dict, a checkpoint with one, a list of pairs, a TorchScript module.

    Keys are joined with dots, "state_dict.module.logit_scale": see state_dicts.py. Raises InteropError for a truncated
    file, a file from PyTorch before 1.6, or one without tensors.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            described = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if described is None:
                raise InteropError(f"{path} is a zip archive without data.pkl: not a PyTorch file.")
            root = described.removesuffix("data.pkl")
            byteorder = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
            content = _interpret(archive.read(described), path)
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise InteropError(
            f"{path} is truncated, or was written by PyTorch before 1.6: {error}. To convert an older file, load it "
            "with torch.load(..., weights_only=True) and save it with torch.save."
        ) from error
    if byteorder != b"little":
        raise InteropError(f"{path} has byte order {byteorder.decode()}; expected little.")
    tensors = dict(_walk(content, "", set()))
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


def _walk(value: Any, prefix: str, seen: set[int]) -> Any:
    """Yields (name, Tensor) of nested containers, each entered once. A list of pairs (name, tensor) is like a dict."""
    if isinstance(value, Tensor):
        yield prefix, value
        return
    known = id(value) in seen
    seen.add(id(value))
    if isinstance(value, Inert) and not known:
        yield from _walk(value.state, prefix, seen)
    elif isinstance(value, dict | list | tuple) and not known:
        if isinstance(value, dict):
            items = value.items()
        elif all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in value):
            items = value
        else:
            items = enumerate(value)
        for key, child in items:
            yield from _walk(child, f"{prefix}.{key}" if prefix else str(key), seen)


def _stored(path: Path, root: str, name: str, tensor: Tensor, sizes: dict[str, int]) -> Stored:
    _, kind, key, *_ = tensor.storage
    member = f"{root}data/{key}"
    dtype = STORAGES.get(kind.name.split()[-1])
    if dtype is None:  # refused where it is read: it may belong to an optimizer
        return Stored(tensor.shape, lambda: _refuse_type(f"{path}: {name}", kind.name))
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    elements = (last + 1) if math.prod(tensor.shape) else 0
    if (tensor.offset + elements) * dtype.itemsize > sizes.get(member, -1) or min(tensor.strides, default=0) < 0:
        raise InteropError(f"{path} is damaged: {name} {list(tensor.shape)} is larger than its storage {member}.")

    def read() -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            file.seek(tensor.offset * dtype.itemsize)
            flat = np.frombuffer(file.read(elements * dtype.itemsize), dtype)
        steps = tuple(stride * dtype.itemsize for stride in tensor.strides)
        return np.array(np.lib.stride_tricks.as_strided(flat, tensor.shape, steps))

    return Stored(tensor.shape, read)


def _refuse_type(where: str, name: str) -> np.ndarray:
    raise InteropError(f"{where} has the unknown type {name}. Known: {', '.join(STORAGES)}.")


def _interpret(program: bytes, path: Path) -> Any:
    """The object that data.pkl describes, made of dicts, lists, tuples, numbers, strings, Tensor, Global and Inert."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return machine.stack[-1]
            if not machine.value(opcode.name, argument) and not machine.container(opcode.name):
                raise InteropError(f"{path}: its description uses pickle's {opcode.name}, which no state dict needs.")
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InteropError):
            raise
        raise InteropError(f"{path} has a damaged description: {type(error).__name__} {error}.") from error
    raise InteropError(f"{path} is truncated: its description has no end.")


class _Machine:
    """pickle's machine, which here imports nothing and calls nothing. Both methods return False for other opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def value(self, name: str, argument: Any) -> bool:
        """Literals, the memo, and objects."""
        stack, memo = self.stack, self.memo
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(Global(argument))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [Global(f"{stack[-2]} {stack[-1]}")]
        elif name == "BINPERSID":
            stack.append(tuple(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Inert):
                stack[-1].state = state
        else:
            return name in ("PROTO", "FRAME")
        return True

    def container(self, name: str) -> bool:
        """Marks, and tuples, lists and dicts of the items above them."""
        stack = self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._popped()
        elif name == "TUPLE":
            stack.append(tuple(self._popped()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "LIST":
            stack.append(self._popped())
        elif name == "DICT":
            items = self._popped()
            stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._popped()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._popped()
            if isinstance(stack[-1], dict):
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
        else:
            return False
        return True

    def _popped(self) -> list[Any]:
        """Removes and returns everything above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _called(function: Any, arguments: tuple) -> Any:
    name = function.name if isinstance(function, Global) else ""
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
        storage, offset, shape, strides = arguments[:4]
        return Tensor(storage, offset, tuple(shape), tuple(strides))
    if name in ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch._tensor _rebuild_from_type_v2":  # a tensor with attributes of its own
        return _called(arguments[0], tuple(arguments[2]))
    if name == "collections OrderedDict":
        return dict(arguments[0]) if arguments else {}
    return Inert()
