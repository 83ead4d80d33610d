"""The table a family is: which of our arrays is which of theirs, read in both directions.

`ours` is a path in the tree with unrolled layers, "image/block_{i}/mlp/up/kernel"; "{i}" stands for every layer of that
tower. `theirs` has the same "{i}", or none where their array has a leading layer axis. Whether our tree is scanned
(one array per tower under "blocks") is the configuration's matter and not the table's. Non-parameter state is called
"batch_stats:image/...". A name of theirs that ends in "[1/3]" is the second of three equal parts of their first axis:
one in_proj_weight for what we keep apart as query, key and value. All parts must be named, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from clipjax.config import ModelConfig, PixelConfig, TokenizerConfig
from clipjax.interop.layouts import Layout, same
from clipjax.mesh import path_name


class InteropError(ValueError):
    """Weights that cannot be read or written as asked; the message names the file or the tensors."""


class Tensor(NamedTuple):
    ours: str
    theirs: tuple[str, ...]
    layout: Layout = same


class Stored(NamedTuple):
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # an array of its own, in the file's dtype


def stored(arrays: Mapping[str, np.ndarray]) -> dict[str, Stored]:
    """Arrays in memory as if they stood in a file."""
    return {name: Stored(tuple(array.shape), lambda a=array: np.array(a)) for name, array in arrays.items()}


def weight_and_bias(ours: str, theirs: str, layout: Layout, bias: bool = True) -> list[Tensor]:
    """PyTorch's weight and bias <-> our kernel and bias."""
    weight = Tensor(f"{ours}/kernel", (f"{theirs}.weight",), layout)
    return [weight, Tensor(f"{ours}/bias", (f"{theirs}.bias",))] if bias else [weight]


def norm(ours: str, theirs: str) -> list[Tensor]:
    """PyTorch's weight and bias <-> our scale and bias."""
    return [Tensor(f"{ours}/scale", (f"{theirs}.weight",)), Tensor(f"{ours}/bias", (f"{theirs}.bias",))]


def layers(tensor: Tensor, model: ModelConfig) -> int | None:
    """How many layers "{i}" stands for; None where there is no "{i}"."""
    return _tower(tensor, model).depth if "{i}" in tensor.ours else None


def our_names(tensor: Tensor, model: ModelConfig) -> list[str]:
    """Where the tensor is in our tree as it is: one name, or one a layer where they are unrolled."""
    depth = layers(tensor, model)
    if depth is None:
        return [tensor.ours]
    if scanned_here(tensor, model):
        return [tensor.ours.replace("block_{i}", "blocks")]
    return [tensor.ours.replace("{i}", str(i)) for i in range(depth)]


def their_names(tensor: Tensor, model: ModelConfig) -> list[tuple[str, ...]]:
    """Their names of one layer each; one row only where there are no layers or theirs have a layer axis."""
    depth = layers(tensor, model)
    if depth is None or stacked_there(tensor):
        return [tensor.theirs]
    return [tuple(name.replace("{i}", str(i)) for name in tensor.theirs) for i in range(depth)]


def scanned_here(tensor: Tensor, model: ModelConfig) -> bool:
    """Whether our array of this tensor has a leading layer axis."""
    return "{i}" in tensor.ours and getattr(_tower(tensor, model), "scan_layers", False)


def whole(name: str) -> tuple[str, int, int]:
    """(name of their tensor, index of the part, number of parts) of an entry of Tensor.theirs."""
    match = re.fullmatch(r"(.*)\[(\d+)/(\d+)\]", name)
    return (match[1], int(match[2]), int(match[3])) if match else (name, 0, 1)


def stacked_there(tensor: Tensor) -> bool:
    """Whether ours is a layer's and theirs has all layers in one array."""
    return "{i}" in tensor.ours and not any("{i}" in name for name in tensor.theirs)


def their_shapes(tensors: Iterable[Tensor], model: ModelConfig, ours: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """name -> shape of everything the table says a file of this model holds, in the table's order.

    ours: name -> anything with a shape, as flatten() gives. Raises InteropError where the table names no parameter of
    ours, or leaves one out: the family cannot hold this model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    missing = set(ours)
    for tensor in tensors:
        names = our_names(tensor, model)
        unknown = [name for name in names if name not in ours]
        if unknown:
            raise InteropError(f"This model has no parameter {', '.join(unknown)}, which the format needs.")
        missing -= set(names)
        depth = layers(tensor, model)
        shape = tuple(ours[names[0]].shape)
        if scanned_here(tensor, model):
            shape = shape[1:]
        # No memory: one number seen at every index.
        parts = [part.shape for part in tensor.layout.write(np.broadcast_to(np.float32(0), shape))]
        for row in their_names(tensor, model):
            for entry, part in zip(row, parts, strict=True):
                name, index, count = whole(entry)
                if stacked_there(tensor):
                    shapes[name] = (depth, *part)
                elif count == 1:
                    shapes[name] = part
                elif index == count - 1:  # complete: the order in which convert.their_arrays gives them
                    shapes[name] = (count * part[0], *part[1:])
    if missing:
        raise InteropError(f"The format has no place for {_listed(sorted(missing))}.")
    return shapes


def check_tensors(
    found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], *, where: str, family: str
) -> None:
    """Raises InteropError naming what a file lacks, has too much, or has in another shape."""
    lines = [f"  missing: {name} {list(expected[name])}" for name in expected if name not in found]
    lines += [f"  unexpected: {name} {list(found[name].shape)}" for name in found if name not in expected]
    lines += [
        f"  {name}: the file has {list(found[name].shape)}, the configuration says {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    if lines:
        raise InteropError(f"{where} does not hold a model of family '{family}' as configured:\n{_shortened(lines)}")


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"params": tree, "batch_stats": tree} -> {"image/...": leaf, "batch_stats:image/...": leaf}."""
    return {
        ("" if collection == "params" else f"{collection}:") + path_name(path): leaf
        for collection, tree in variables.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of flatten, as nested dicts."""
    variables: dict[str, Any] = {"params": {}}
    for name, leaf in leaves.items():
        collection, _, path = name.rpartition(":")
        *parents, last = path.split("/")
        at = variables.setdefault(collection or "params", {})
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = leaf
    return variables


def _tower(tensor: Tensor, model: ModelConfig) -> Any:
    return getattr(model, tensor.ours.rpartition(":")[2].split("/")[0])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _shortened(lines: list[str]) -> str:
    return "\n".join(lines[:20]) + (f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else "")


class Description(NamedTuple):
    """Theirs: what a family reads its configuration from."""

    files: Mapping[str, Any]  # name -> content of every JSON file of the directory; {} for a single file
    shapes: Mapping[str, tuple[int, ...]]  # name -> shape of every tensor
    beside: frozenset[str] = frozenset()  # names of the directory's other files, tokenizers among them


class Meaning(NamedTuple):
    """Ours: what the weights are, and how images and texts reach them."""

    model: ModelConfig
    pixels: PixelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()  # path: a file of the directory; "" where there is none


def config_of(description: Description, name: str) -> Mapping[str, Any]:
    """The content of a configuration file. Raises InteropError where it is not beside the weights."""
    if name not in description.files:
        raise InteropError(
            f"There is no {name} beside the weights: say what they are with --preset, such as siglip_b16."
        )
    return description.files[name]


def refuse_other_pixels(found: PixelConfig, only: PixelConfig, who: str) -> None:
    """Raises InteropError where images do not reach the model as code without a configuration prepares them.

    Half a pixel's difference in the centre crop is let pass.
    """
    for field in ("resize", "scale_to", "interpolation", "antialias", "mean", "std"):
        value, wanted = getattr(found, field), getattr(only, field)
        if value != wanted:
            raise InteropError(
                f"{who} prepares images with {field}={wanted!r}, and not {value!r} (config.data.pixels)."
            )
