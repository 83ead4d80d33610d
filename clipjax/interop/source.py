"""Opens published weights, a file or a directory, without reading the tensors."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from clipjax import files, json_files
from clipjax.config.errors import shown
from clipjax.interop.config_files import OPEN_CLIP, TRANSFORMERS, read_sections
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
        kind = files.not_a_file(path)
        raise InteropError(f"{path} is {kind or 'neither a file nor a directory'} (nothing is downloaded).")
    tensors = _open_index(weights) if weights.name.endswith(".index.json") else _open_parts(weights)
    odd = next((name for name in tensors if files.printable(name) != name), None)
    if odd is not None:
        raise InteropError(f"{weights} has a tensor {odd!r}, with control characters in its name: no model has one.")
    tensors = model_tensors(tensors, str(weights), state_dict)
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file() and not files.hidden(entry.name))
    documents = read_sections({name: _read_object(directory / name) for name in names if name.endswith("config.json")})
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Source(path, directory, Description(documents, shapes, frozenset(names)), tensors, weights.name, others)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InteropError where it is not JSON."""
    try:
        return json_files.read_json(path)
    except ValueError as error:
        raise InteropError(f"{path} is not JSON, or truncated: {str(error).rstrip('.')}.") from error


def _read_object(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise InteropError(f"{path} is {shown(document)}; expected an object of fields and values.")
    return document


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
    others = sorted(
        entry
        for entry in directory.iterdir()
        if entry.suffix in SUFFIXES
        and entry.is_file()
        and not (files.hidden(entry.name) or TRAINERS.fullmatch(entry.name))
    )
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
        return open_npz(path)
    if path.suffix in SUFFIXES or (path.is_file() and zipfile.is_zipfile(path)):
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
