"""Opens published weights, a file or a directory, without reading the tensors."""

from __future__ import annotations

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clipjax.files import hidden, read_text
from clipjax.interop.config_files import OPEN_CLIP, TRANSFORMERS, read_sections
from clipjax.interop.names import Description, InteropError, Stored
from clipjax.interop.safetensors import open_safetensors
from clipjax.interop.state_dicts import model_tensors
from clipjax.interop.torch_files import open_torch

# The weights of a directory: the first of these names that exists. An index lists the files of a sharded model.
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".ckpt")
# What transformers' and other trainers keep beside weights.
TRAINERS = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state).*")
MAX_SHARDS = 10_000
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")  # a part of a sharded model


class Source(NamedTuple):
    """Opened weights: what describes them, and their tensors, not read yet."""

    path: Path  # as given
    directory: Path  # of the weights and the files beside them
    description: Description
    tensors: dict[str, Stored]
    weights: str = ""  # the file that was opened
    others: tuple[str, ...] = ()  # other files of weights in the directory, which were not


def open_weights(path: str | Path, state_dict: str = "", format: str = "") -> Source:
    """Reads headers and JSON files only. Raises InteropError for a missing, unknown, damaged or truncated file.

    state_dict: the model to read, in a checkpoint that holds several: the prefix of its tensors' names. format: whose
    files to prefer in a directory that has those of several libraries, "hf" or "open_clip"; see weights_of.
    """
    path = Path(path)
    others: tuple[str, ...] = ()
    if path.is_dir():
        weights, *rest = weights_of(path, format)
        directory, others = path, tuple(entry.name for entry in rest)
    elif path.is_file():
        weights, directory = path, path.parent
    else:
        raise InteropError(f"{path} is neither a file nor a directory (nothing is downloaded).")
    tensors = _open_index(weights) if weights.name.endswith(".index.json") else _open_parts(weights)
    tensors = model_tensors(tensors, str(weights), state_dict)
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file() and not hidden(entry.name))
    files = read_sections({name: read_json(directory / name) for name in names if name.endswith("config.json")})
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Source(path, directory, Description(files, shapes, frozenset(names)), tensors, weights.name, others)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InteropError where it is not JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise InteropError(f"{path} is not JSON, or truncated: {error}.") from error


def weights_of(directory: Path, format: str = "") -> list[Path]:
    """The file of weights to read in a directory, and after it the other formats that are there.

    Those of `format` come first ("hf", "open_clip"). Without it, a directory with the configuration of one library has
    that library's first. Then the order is that of WEIGHTS: .safetensors before .bin, transformers' names before
    OpenCLIP's. Raises InteropError where there is none, or several that have other names.
    """
    if not format and (directory / OPEN_CLIP).is_file() and not (directory / TRANSFORMERS).is_file():
        format = "open_clip"
    known = [name for name in WEIGHTS if (directory / name).is_file()]
    if known:
        if format:
            known.sort(key=lambda name: name.startswith("open_clip_") != (format == "open_clip"))
        whole = [name for name in known if f"{name}.index.json" not in known]  # an index comes instead of the file
        return [directory / name for name in whole]
    others = sorted(entry for entry in directory.iterdir() if entry.suffix in SUFFIXES and not hidden(entry.name))
    others = [entry for entry in others if not TRAINERS.fullmatch(entry.name)]
    if len({SHARD.sub(r"\1\3\4", entry.name) for entry in others}) == 1:
        return others[:1]  # one file, or the parts of one model
    if len(others) != 1:
        problem = f"has {len(others)} files that may be the weights; name one of them" if others else "has no weights"
        raise InteropError(
            f"{directory} {problem}. Expected one of {', '.join(WEIGHTS)}, or a single file *{', *'.join(SUFFIXES)}."
        )
    return others


def _open_parts(path: Path) -> dict[str, Stored]:
    """The tensors of a file, together with the other parts of its model if it is one of several without an index."""
    match = SHARD.fullmatch(path.name)
    if not match:
        return _open_file(path)
    stem, width, count, suffix = match[1], len(match[2]), int(match[3]), match[4]
    if count > MAX_SHARDS:
        raise InteropError(f"{path} names {count} parts of a model; expected {MAX_SHARDS} at most.")
    names = [f"{stem}-{i:0{width}d}-of-{match[3]}{suffix}" for i in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise InteropError(f"{path} is one of {count} parts of a model. Missing beside it: {', '.join(missing[:20])}.")
    tensors: dict[str, Stored] = {}
    for name in names:
        for key, tensor in _open_file(path.parent / name).items():
            if key in tensors:
                raise InteropError(f"{path.parent / name} has a tensor {key}, which another part of the model has too.")
            tensors[key] = tensor
    return tensors


def _open_file(path: Path) -> dict[str, Stored]:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    if path.suffix in SUFFIXES or path.is_file() and zipfile.is_zipfile(path):
        return open_torch(path)
    raise InteropError(f"{path} is not a file of weights. Expected *{', *'.join(SUFFIXES)}.")


def _open_index(index: Path) -> dict[str, Stored]:
    """The tensors of a sharded model, each from the file that the index names for it."""
    assigned = read_json(index).get("weight_map", {})
    missing = sorted({name for name in assigned.values() if not (index.parent / name).is_file()})
    if missing:
        raise InteropError(f"{index} names files that are not there: {', '.join(missing[:20])}.")
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
        raise InteropError(f"{path} is truncated or not an .npz file: {error}.") from error
    return result


def _read_npz(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        array = archive[name]
    # NumPy has no bfloat16 and stores it as two raw bytes; big_vision's files have such arrays.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
