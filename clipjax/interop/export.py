"""Variables as files that another library reads: which family can hold the model, and its weights and configuration."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.config import ModelConfig, differences
from clipjax.interop.convert import their_arrays
from clipjax.interop.families import check_towers, families_of
from clipjax.interop.names import Description, Family, InteropError, Meaning, computed_fields, their_shapes
from clipjax.interop.safetensors import write_safetensors
from clipjax.interop.torch_files import write_torch

Shapes = dict[str, tuple[int, ...]]


def choose_family(meaning: Meaning, format: str, parameters: Mapping[str, Any]) -> tuple[str, Family, Shapes]:
    """(name, family, shapes of its tensors): the first family of the format that can express the whole model.

    A family can do so if its table has a place for every parameter, and the configuration it writes is read back as
    the same model. parameters: name -> anything with a shape, as clipjax.interop.names.flatten returns.
    Raises InteropError with every family's reason if none can, or for an unknown format.
    """
    reasons = []
    for name, family in families_of(format).items():
        try:
            check_towers(name, family, meaning.model)
            shapes = their_shapes(family.tensors(meaning.model), meaning.model, parameters)
            again = family.read(Description(family.write(meaning), shapes)).model
            lost = lost_fields(meaning.model, again) or lost_parameters(family, meaning.model, again)
            if not lost:
                return name, family, shapes
            reasons.append(f"  {name}: cannot express {', '.join(lost)}")
        except (InteropError, KeyError) as error:
            reasons.append(f"  {name}: {error}")
    raise InteropError(f"Format '{format}' cannot hold this model:\n" + "\n".join(reasons))


def lost_fields(model: ModelConfig, again: ModelConfig) -> list[str]:
    """Fields that a format does not keep: those of `model` that are read back with another value in `again`.

    Only fields that decide the parameters or what they compute count; see computed_fields.
    """
    wanted, read = computed_fields(model), computed_fields(again)
    if not model.decoder.depth:  # no captioner: its other options have no effect
        wanted |= {name: value for name, value in read.items() if name.startswith("decoder.") and name in wanted}
        wanted["decoder.depth"] = 0
    changed = differences(wanted, read).items()
    return [f"{name}={value!r} (read back as {other!r})" for name, (value, other) in changed]


def lost_parameters(family: Family, model: ModelConfig, again: ModelConfig) -> list[str]:
    """Parameters that only one of the two models has in the family's table, such as a logit_bias."""
    own, read = ({tensor.ours for tensor in family.tensors(each)} for each in (model, again))
    return [f"a model with {name}" for name in sorted(own - read)] + [
        f"a model without {name}" for name in sorted(read - own)
    ]


def write_files(
    directory: Path, meaning: Meaning, family: Family, shapes: Shapes, variables: Mapping[str, Any]
) -> None:
    """Writes the configuration and the weights into directory, one parameter on the host at a time.

    family, shapes: from choose_family. variables: {"params": tree, "batch_stats": tree}. Weights become float32.
    """
    for name, content in family.write(meaning).items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    constants = family.constants(meaning.model)
    shapes = shapes | {name: array.shape for name, array in constants.items()}
    arrays = their_arrays(family.tensors(meaning.model), meaning.model, variables)
    write = WRITERS[Path(family.weights).suffix]
    write(directory / family.weights, shapes, itertools.chain(arrays, constants.items()))


def write_npz(path: Path, shapes: Shapes, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes what numpy.savez writes, one array at a time."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array).reshape(shapes[name]), allow_pickle=False)


WRITERS = {".npz": write_npz, ".safetensors": write_safetensors, ".pt": write_torch}
