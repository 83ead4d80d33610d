"""Opens what others publish: a directory, or one file, with every tensor left where it is."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clipjax.interop.names import Description, InteropError, Stored
from clipjax.interop.safetensors import open_safetensors
from clipjax.interop.torch_files import open_torch

# The weights of a directory: the first of these that is there. An index lists the files that share a model's tensors.
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")


class Source(NamedTuple):
    path: Path  # as given
    directory: Path  # where the files beside the weights are
    description: Description
    tensors: dict[str, Stored]


def open_weights(path: str | Path) -> Source:
    """Raises InteropError for what is not there, not known, damaged or truncated. Nothing but headers is read."""
    path = Path(path)
    if path.is_dir():
        weights, directory = _weights_of(path), path
    elif path.is_file():
        weights, directory = path, path.parent
    else:
        raise InteropError(f"{path} is neither a file nor a directory.")
    tensors = _open_index(weights) if weights.name.endswith(".index.json") else _open_file(weights)
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    files = {name: read_json(directory / name) for name in names if name.endswith("config.json")}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Source(path, directory, Description(files, shapes, frozenset(names)), tensors)


def read_json(path: Path) -> Any:
    """Raises InteropError where the file is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InteropError(f"{path} is not JSON, or truncated: {error}.") from error


def _weights_of(directory: Path) -> Path:
    for name in WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    others = sorted(entry for entry in directory.iterdir() if entry.suffix in SUFFIXES)
    if len(others) != 1:
        found = f"has {len(others)} files that could be: name one of them" if others else "has no weights"
        raise InteropError(
            f"{directory} {found}. Expected one of {', '.join(WEIGHTS)}, or a file *{', *'.join(SUFFIXES)}."
        )
    return others[0]


def _open_file(path: Path) -> dict[str, Stored]:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    if path.suffix in SUFFIXES:
        return open_torch(path)
    raise InteropError(f"{path} is no file of weights: expected *{', *'.join(SUFFIXES)}.")


def _open_index(index: Path) -> dict[str, Stored]:
    """The tensors of several files, as the index assigns them."""
    assigned = read_json(index).get("weight_map", {})
    absent = sorted({name for name in assigned.values() if not (index.parent / name).is_file()})
    if absent:
        raise InteropError(f"{index} names files that are not there: {', '.join(absent[:20])}.")
    shards = {name: _open_file(index.parent / name) for name in sorted(set(assigned.values()))}
    lost = [name for name, shard in assigned.items() if name not in shards[shard]]
    if lost:
        raise InteropError(f"{index} assigns tensors to files that lack them: {', '.join(lost[:20])}.")
    return {name: shards[shard][name] for name, shard in assigned.items()}


def _open_npz(path: Path) -> dict[str, Stored]:
    result = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                    read_header = read_header or np.lib.format.read_array_header_2_0
                    shape, _, dtype = read_header(file)
                    header = file.tell()
                if dtype.hasobject:
                    raise InteropError(f"{path}: {info.filename} holds Python objects (pickle), which are not read.")
                if info.file_size != header + math.prod(shape) * dtype.itemsize:
                    raise InteropError(f"{path} is damaged: {info.filename} {list(shape)} has {info.file_size} bytes.")
                name = info.filename.removesuffix(".npy")
                result[name] = Stored(shape, lambda name=name: _read_npz(path, name))
    except (zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, InteropError):
            raise
        raise InteropError(f"{path} is truncated or no .npz file: {error}.") from error
    return result


def _read_npz(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        array = archive[name]
    # big_vision saves bfloat16 as two raw bytes, which is what NumPy makes of it.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
