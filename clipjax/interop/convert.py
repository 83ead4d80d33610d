"""Converts tensors of a file to arrays on the mesh and back, one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.config import ModelConfig
from clipjax.interop.names import (
    Stored,
    Tensor,
    flatten,
    layers,
    our_names,
    scanned_here,
    stacked_there,
    their_names,
    unflatten,
    whole,
)
from clipjax.mesh import to_host, to_mesh


def read_variables(
    tensors: Sequence[Tensor], model: ModelConfig, file: Mapping[str, Stored], target: Mapping[str, Any]
) -> dict[str, Any]:
    """The variables of a model, from the tensors of a file: {"params": tree}, and "batch_stats" where target has it.

    tensors: the family's table. file: name -> tensor, already checked by names.check_tensors.
    target: the variables as jax.ShapeDtypeStruct. A leaf with a sharding becomes a jax.Array with it, and the host
    holds one such parameter at a time; a leaf without one becomes a NumPy array.
    """
    leaves, result = flatten(target), {}
    for tensor in tensors:
        for name, array in _read(tensor, model, file):
            result[name] = _place(array, leaves[name])
            del array
    # In the target's order, so that the tree equals one made by the model.
    return unflatten({name: result[name] for name in leaves})


def their_arrays(
    tensors: Sequence[Tensor], model: ModelConfig, variables: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, float32 array) of every tensor of the file, in the order of names.their_shapes.

    One of our parameters is on the host at a time.
    """
    pending: dict[str, list[np.ndarray]] = {}
    for entry, array in _entries(tensors, model, flatten(variables)):
        name, _, count = whole(entry)
        if count == 1:
            yield name, array
            continue
        parts = pending.setdefault(name, [])
        parts.append(array)
        if len(parts) == count:
            yield name, np.concatenate(pending.pop(name))


def _entries(
    tensors: Sequence[Tensor], model: ModelConfig, ours: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for tensor in tensors:
        names, rows = our_names(tensor, model), their_names(tensor, model)
        depth = layers(tensor, model)
        if depth is None:
            per_layer = [_host(ours[names[0]])]
        elif scanned_here(tensor, model):
            per_layer = _host(ours[names[0]])
        else:
            per_layer = (_host(ours[name]) for name in names)
        if stacked_there(tensor):
            written = [tensor.layout.write(np.asarray(layer)) for layer in per_layer]
            yield from zip(tensor.theirs, (np.stack(parts) for parts in zip(*written, strict=True)), strict=True)
            continue
        for row, layer in zip(rows, per_layer, strict=True):
            yield from zip(row, tensor.layout.write(layer), strict=True)


def _read(tensor: Tensor, model: ModelConfig, file: Mapping[str, Stored]) -> Iterator[tuple[str, np.ndarray]]:
    names, rows = our_names(tensor, model), their_names(tensor, model)
    if stacked_there(tensor):
        stacks = [file[name].read() for name in tensor.theirs]
        parts: Iterator[list[np.ndarray]] = ([array[i] for array in stacks] for i in range(layers(tensor, model)))
    else:
        parts = ([_entry(file, name) for name in row] for row in rows)
    converted = (tensor.layout.read([np.asarray(a, np.float32) for a in arrays]) for arrays in parts)
    if not scanned_here(tensor, model):
        yield from zip(names, converted, strict=True)
        return
    first = next(converted)
    stacked = np.empty((layers(tensor, model), *first.shape), np.float32)
    stacked[0] = first
    for i, array in enumerate(converted, 1):
        stacked[i] = array
    yield names[0], stacked


def _entry(file: Mapping[str, Stored], entry: str) -> np.ndarray:
    name, index, count = whole(entry)
    array = file[name].read()
    return np.split(array, count)[index] if count > 1 else array


def _place(array: np.ndarray, target: jax.ShapeDtypeStruct) -> Any:
    # A copy: on a CPU, JAX may keep using the array it is given, and a view would keep all of its base in memory.
    if array.size == 1:  # [1] and [] are the same number; see names.check_tensors
        array = array.reshape(target.shape)
    array = np.require(array, target.dtype, ["C_CONTIGUOUS", "OWNDATA"])
    if target.sharding is None:
        return array
    placed = to_mesh(array, target.sharding)
    return jax.block_until_ready(placed)  # without waiting, many transfers at once would hold their arrays


def _host(array: Any) -> np.ndarray:
    return np.asarray(to_host(array), np.float32)
