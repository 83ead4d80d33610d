"""Opens published weights, a file or a directory, without reading the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from clipjax import files
from clipjax.config.errors import shown
from clipjax.interop.names import Description, InteropError, Stored
from clipjax.interop.npz import open_npz
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
MAX_FILE_NAME = 255  # characters
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")


class Source(NamedTuple):
    """Opened weights: what describes them, and their tensors, not read yet."""

    path: Path  # as given
    directory: Path  # of the weights and the files beside them
    description: Description
    tensors: dict[str, Stored]


def open_weights(path: str | Path, state_dict: str = "") -> Source:
    """Reads headers and JSON files only. Raises InteropError for a missing, unknown, damaged or truncated file.

    state_dict: the model to read, in a checkpoint that holds several: the prefix of its tensors' names.
    """
    path = Path(path)
    if path.is_dir():
        weights, directory = _weights_of(path), path
    elif path.is_file():
        weights, directory = path, path.parent
    else:
        kind = files.not_a_file(path)
        raise InteropError(f"{path} is {kind or 'neither a file nor a directory'} (nothing is downloaded).")
    tensors = _open_index(weights) if weights.name.endswith(".index.json") else _open_file(weights)
    odd = next((name for name in tensors if files.printable(name) != name), None)
    if odd is not None:
        raise InteropError(f"{weights} has a tensor {odd!r}, with control characters in its name: no model has one.")
    tensors = model_tensors(tensors, str(weights), state_dict)
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file() and not files.hidden(entry.name))
    documents = {name: _read_object(directory / name) for name in names if name.endswith("config.json")}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Source(path, directory, Description(documents, shapes, frozenset(names)), tensors)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InteropError where it is not JSON."""
    try:
        return files.read_json(path)
    except ValueError as error:
        raise InteropError(f"{path} is not JSON, or truncated: {error}.") from error


def _read_object(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise InteropError(f"{path} is {shown(document)}; expected an object of fields and values.")
    return document


def _weights_of(directory: Path) -> Path:
    for name in WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    others = sorted(
        entry
        for entry in directory.iterdir()
        if entry.suffix in SUFFIXES and entry.is_file() and not files.hidden(entry.name)
    )
    if len(others) != 1:
        problem = f"has {len(others)} files that may be the weights; name one of them" if others else "has no weights"
        raise InteropError(
            f"{directory} {problem}. Expected one of {', '.join(WEIGHTS)}, or a single file *{', *'.join(SUFFIXES)}."
        )
    return others[0]


def _open_file(path: Path) -> dict[str, Stored]:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix in SUFFIXES:
        return open_torch(path)
    raise InteropError(f"{path} is not a file of weights. Expected *{', *'.join(SUFFIXES)}.")


def _open_index(index: Path) -> dict[str, Stored]:
    """The tensors of a sharded model, each from the file that the index names for it."""
    assigned = _read_object(index).get("weight_map")
    if not isinstance(assigned, dict) or not assigned:
        raise InteropError(f"{index} has no weight_map, which says the file of each tensor.")
    for name, file in assigned.items():
        if not isinstance(file, str) or file in ("", ".", "..") or {*"/\\\0"} & {*file} or len(file) > MAX_FILE_NAME:
            raise InteropError(f"{index}: tensor {shown(name)} is in {shown(file)}; expected a file's name beside it.")
    missing = sorted({name for name in assigned.values() if not (index.parent / name).is_file()})
    if missing:
        raise InteropError(f"{index} names files that are not there: {', '.join(missing[:20])}.")
    shards = {name: _open_file(index.parent / name) for name in sorted(set(assigned.values()))}
    lost = [name for name, shard in assigned.items() if name not in shards[shard]]
    if lost:
        raise InteropError(f"{index} assigns tensors to files that lack them: {', '.join(lost[:20])}.")
    return {name: shards[shard][name] for name, shard in assigned.items()}
