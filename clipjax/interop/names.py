"""What a published format is (`Family`), and the table of names in it: which array of ours is which of theirs.

"Ours" is clipjax, "theirs" the library that published the weights. A table is a list of `Tensor(ours, theirs, layout)`
and is read in both directions.

    ours     a path in the tree with unrolled layers: "image/block_{i}/mlp/up/kernel"; "{i}" is the number of a layer.
             State that is not a parameter has its collection in front: "batch_stats:image/bn_1/mean".
    theirs   the tensors it is made of, with the same "{i}", or without it where one tensor holds all layers.
             "in_proj_weight[1/3]" is the second of three equal parts of a tensor's first axis; a table names all
             parts, in order.

Whether our own layers are scanned (one array per tower under "blocks") follows from the configuration, not the table.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from clipjax.config import (
    ImageTowerConfig,
    ModelConfig,
    PixelConfig,
    TextTowerConfig,
    TokenizerConfig,
    declared,
    flat,
)
from clipjax.interop.layouts import Layout, same
from clipjax.mesh import path_name
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig

MANY = 3  # missing and unexpected tensors from which on a difference in the names' beginning is worth a line


class InteropError(ValueError):
    """Weights that cannot be read or written as asked. The message names the file or the tensors, and what to do."""


class Tensor(NamedTuple):
    """A row of a table of names; see the module's docstring."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = same


class Stored(NamedTuple):
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # a new array in the file's dtype


class Description(NamedTuple):
    """What a family needs to recognise files, and to read their configuration."""

    files: Mapping[str, Any]  # name -> content of the JSON files beside the weights; {} for a single file
    shapes: Mapping[str, tuple[int, ...]]  # name -> shape of every tensor
    beside: frozenset[str] = frozenset()  # names of all files in the directory


class Meaning(NamedTuple):
    """What one must know to use weights: the model, and how images and texts are prepared for it."""

    model: ModelConfig
    pixels: PixelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()  # path: relative to the directory; "" where there is no tokenizer


class Family(NamedTuple):
    """One way in which models are published. Each is a row of clipjax.interop.families.FAMILIES."""

    tensors: Callable[[ModelConfig], list[Tensor]]  # the table; raises InteropError for a model it cannot name
    matches: Callable[[Description], bool]  # whether files are of this family
    read: Callable[[Description], Meaning]  # raises InteropError for what clipjax does not support
    format: str  # the --format that writes it; several families may share a format
    # JSON files to write beside the weights, by name; raises InteropError for what the format cannot express
    write: Callable[[Meaning], dict[str, Any]] = lambda meaning: {}
    image: type[ImageTowerConfig] = ViTConfig  # the towers it holds, by their options
    text: type[TextTowerConfig] = TextTransformerConfig
    ignored: str = r"(?!)"  # regular expression: (renamed) tensors that are no weights, such as position ids
    renamed: Callable[[str], str] = lambda name: name  # a name in a file -> the table's, where files differ in a prefix
    weights: str = "model.safetensors"  # the file that an export writes
    pixels: PixelConfig = PixelConfig()  # used with --preset where no file says how images are prepared
    # with --preset: how images of this model are prepared, from the files that say it
    read_pixels: Callable[[Description, ModelConfig], PixelConfig] | None = None
    # tensors to write that are no weights, such as sizes
    constants: Callable[[ModelConfig], dict[str, np.ndarray]] = lambda model: {}
    # the text tower's config.json, where the files only name a model on the Hugging Face hub
    hub_config: Callable[[TextTowerConfig], dict[str, Any]] | None = None


def config_of(description: Description, name: str) -> Mapping[str, Any]:
    """The content of a JSON file beside the weights. Raises InteropError where there is none."""
    if name not in description.files:
        raise InteropError(
            f"There is no {name} beside the weights. Add it, or name the model with --preset, such as siglip_b16."
        )
    return description.files[name]


def computed_fields(config: Any) -> dict[str, Any]:
    """Dotted name -> value of the fields that decide which parameters there are and what they compute.

    These have the roles `weights` and `meaning` (clipjax.config.fields). A format must be able to express all of them.
    """
    declarations = declared(config)
    return {name: value for name, value in flat(config).items() if declarations[name].role in ("weights", "meaning")}


def stored(arrays: Mapping[str, np.ndarray]) -> dict[str, Stored]:
    """Arrays in memory, as if they were tensors in a file."""
    return {name: Stored(tuple(array.shape), lambda a=array: np.array(a)) for name, array in arrays.items()}


def weight_and_bias(ours: str, theirs: str, layout: Layout, bias: bool = True) -> list[Tensor]:
    """PyTorch's weight and bias <-> our kernel and bias."""
    weight = Tensor(f"{ours}/kernel", (f"{theirs}.weight",), layout)
    return [weight, Tensor(f"{ours}/bias", (f"{theirs}.bias",))] if bias else [weight]


def norm(ours: str, theirs: str) -> list[Tensor]:
    """PyTorch's weight and bias <-> our scale and bias."""
    return [Tensor(f"{ours}/scale", (f"{theirs}.weight",)), Tensor(f"{ours}/bias", (f"{theirs}.bias",))]


def layers(tensor: Tensor, model: ModelConfig) -> int | None:
    """The number of layers that "{i}" counts; None for a tensor without "{i}"."""
    return _tower(tensor, model).depth if "{i}" in tensor.ours else None


def our_names(tensor: Tensor, model: ModelConfig) -> list[str]:
    """Its names in our tree: one, or one per layer where layers are unrolled."""
    depth = layers(tensor, model)
    if depth is None:
        return [tensor.ours]
    if scanned_here(tensor, model):
        return [tensor.ours.replace("block_{i}", "blocks")]
    return [tensor.ours.replace("{i}", str(i)) for i in range(depth)]


def their_names(tensor: Tensor, model: ModelConfig) -> list[tuple[str, ...]]:
    """Its names in a file, one row per layer; a single row without layers, or where their tensor holds all layers."""
    depth = layers(tensor, model)
    if depth is None or stacked_there(tensor):
        return [tensor.theirs]
    return [tuple(name.replace("{i}", str(i)) for name in tensor.theirs) for i in range(depth)]


def scanned_here(tensor: Tensor, model: ModelConfig) -> bool:
    """Whether our array has a leading layer axis."""
    return "{i}" in tensor.ours and getattr(_tower(tensor, model), "scan_layers", False)


def stacked_there(tensor: Tensor) -> bool:
    """Whether one tensor of theirs holds all layers, where our table counts them."""
    return "{i}" in tensor.ours and not any("{i}" in name for name in tensor.theirs)


def whole(name: str) -> tuple[str, int, int]:
    """An entry of Tensor.theirs -> (name of the whole tensor, index of the part, number of parts)."""
    match = re.fullmatch(r"(.*)\[(\d+)/(\d+)\]", name)
    return (match[1], int(match[2]), int(match[3])) if match else (name, 0, 1)


def their_shapes(tensors: Iterable[Tensor], model: ModelConfig, ours: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor in a file of this model, in the table's order.

    ours: name -> anything with a shape, as flatten() returns. Raises InteropError where the table names a parameter
    that the model lacks, or leaves one out: the family cannot hold this model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    left_out = set(ours)
    for tensor in tensors:
        names = our_names(tensor, model)
        unknown = [name for name in names if name not in ours]
        if unknown:
            raise InteropError(f"The format needs {_listed(unknown)}, and this model has no such parameter.")
        left_out -= set(names)
        depth = layers(tensor, model)
        shape = tuple(ours[names[0]].shape)
        if scanned_here(tensor, model):
            shape = shape[1:]
        # A broadcast scalar takes no memory.
        parts = [part.shape for part in tensor.layout.write(np.broadcast_to(np.float32(0), shape))]
        for row in their_names(tensor, model):
            for entry, part in zip(row, parts, strict=True):
                name, index, count = whole(entry)
                if stacked_there(tensor):
                    shapes[name] = (depth, *part)
                elif count == 1:
                    shapes[name] = part
                elif index == count - 1:  # complete: the order in which convert.their_arrays yields them
                    shapes[name] = (count * part[0], *part[1:])
    if left_out:
        raise InteropError(f"The format has no place for {_listed(sorted(left_out))}.")
    return shapes


def check_tensors(
    found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], *, where: str, family: str
) -> None:
    """Raises InteropError naming the tensors that are missing, unexpected, or of another shape: some of each kind.

    Where both are many, it also says how the file's names begin, and how they should.
    """
    missing = [f"  missing: {name} {list(expected[name])}" for name in expected if name not in found]
    unexpected = [f"  unexpected: {name} {list(found[name].shape)}" for name in found if name not in expected]
    other = [
        f"  {name}: the file has {list(found[name].shape)}, the configuration says {list(shape)}"
        for name, shape in expected.items()
        if name in found and not _same_shape(tuple(found[name].shape), tuple(shape))
    ]
    if not (missing or unexpected or other):
        return
    lines = [line for kind in (missing, unexpected, other) for line in _shortened(kind)]
    if min(len(missing), len(unexpected)) >= MANY:
        lines.insert(0, f"  the file's names begin with {beginnings(found)}; expected {beginnings(expected)}")
    listed = "\n".join(lines)
    raise InteropError(f"{where} does not hold a model of family '{family}' as configured:\n{listed}")


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


def _same_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """A single number, such as logit_scale, may be stored as [] or as [1]."""
    return found == expected or {found, expected} == {(), (1,)}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _shortened(lines: list[str], count: int = 8) -> list[str]:
    if len(lines) <= count:
        return lines
    return lines[:count] + [f"  ... and {len(lines) - count} more {lines[0].split(':')[0].strip()}"]


def beginnings(names: Iterable[str]) -> str:
    """How names begin, the most frequent first: "'visual.' (150), 'transformer.' (148), 'logit_scale' (1)"."""
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        first, separator, _ = name.partition("/" if "/" in name else ".")
        counts[first + separator] += 1
    shown = ", ".join(f"'{first}' ({count})" for first, count in counts.most_common(5))
    return shown + (", ..." if len(counts) > 5 else "")
