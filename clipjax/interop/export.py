"""Variables as files that another library reads: which family can hold the model, and its weights and configuration."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.config import ModelConfig, PixelConfig, differences
from clipjax.interop.convert import their_arrays
from clipjax.interop.families import check_towers, families_of
from clipjax.interop.names import Description, Family, InteropError, Meaning, computed_fields, their_shapes
from clipjax.interop.safetensors import write_safetensors
from clipjax.interop.torch_files import write_torch
from clipjax.models import patch_budget

Shapes = dict[str, tuple[int, ...]]

# Fields of config.data.pixels in which every library has its own habit that no file changes: an export names the
# difference, and is not refused. All others are.
HABITS = {
    "alpha": "transparent pixels are composed over white ('white'), or shown in the colour that they hide ('drop')",
    "center": "half of an odd margin is rounded to the even number ('round') or down ('floor'): one pixel",
}
NEAREST = (
    "Choose a format that stores how images are prepared (hf, open_clip), or add --nearest_pixels to write the nearest "
    "that the format can express; whoever uses the files must then prepare images as config.data.pixels says."
)


def choose_family(
    meaning: Meaning, format: str, parameters: Mapping[str, Any], *, nearest_pixels: bool = False
) -> tuple[str, Family, Shapes]:
    """(name, family, shapes of its tensors): the first family of the format that can express the whole model.

    A family can do so if its table has a place for every parameter, and the configuration it writes is read back as
    the same model, and as images that are prepared in the same way, except for HABITS. nearest_pixels: do not require
    the latter. parameters: name -> anything with a shape, as clipjax.interop.names.flatten returns.
    Raises InteropError with every family's reason if none can, or for an unknown format.
    """
    reasons, advice = [], ""
    for name, family in families_of(format).items():
        try:
            check_towers(name, family, meaning.model)
            shapes = their_shapes(family.tensors(meaning.model), meaning.model, parameters)
            read = _read_back(meaning, family, shapes)
            lost = lost_fields(meaning.model, read.model) or lost_parameters(family, meaning.model, read.model)
            if not lost and not nearest_pixels:
                changed = lost_pixels(meaning, read.pixels).items()
                lost = [f"config.data.pixels.{_lost(field, *both)}" for field, both in changed if field not in HABITS]
                advice = f"\n{NEAREST}" if lost else advice
            if not lost:
                return name, family, shapes
            reasons.append(f"  {name}: cannot express {', '.join(lost)}")
        except (InteropError, KeyError) as error:
            reasons.append(f"  {name}: {error}")
    raise InteropError(f"Format '{format}' cannot hold this model:\n" + "\n".join(reasons) + advice)


def pixel_notes(meaning: Meaning, family: Family, shapes: Shapes) -> list[str]:
    """A line for every field of config.data.pixels that the files of a chosen family do not keep."""
    changed = lost_pixels(meaning, _read_back(meaning, family, shapes).pixels)
    return [
        f"The format does not keep config.data.pixels.{_lost(field, *both)}."
        + (f" The difference: {HABITS[field]}." if field in HABITS else "")
        for field, both in changed.items()
    ]


def lost_pixels(meaning: Meaning, read: PixelConfig) -> dict[str, tuple[Any, Any]]:
    """{field of config.data.pixels: (value, value in `read`)} of all that prepare images of this model otherwise."""
    model, pixels = meaning.model, meaning.pixels
    size = model.image.image_size
    wanted, found = ({**computed_fields(p), "scale_to": p.scale_to or size} for p in (pixels, read))
    unused = set() if pixels.resize == "pad" else {"fill"}
    if patch_budget(model.image):  # images keep their shape
        unused |= {"resize", "scale_to", "center", "fill"}
    elif pixels.resize == "squash" and wanted["scale_to"] == size:  # nothing is cut
        unused |= {"center"}
    elif pixels.resize == "pad":
        unused |= {"center", "scale_to"}
    return {field: both for field, both in differences(wanted, found).items() if field not in unused}


def lost_fields(model: ModelConfig, again: ModelConfig) -> list[str]:
    """Fields that a format does not keep: those of `model` that are read back with another value in `again`.

    Only fields that decide the parameters or what they compute count; see computed_fields.
    """
    wanted, read = computed_fields(model), computed_fields(again)
    if not model.decoder.depth:  # no captioner: its other options have no effect
        wanted |= {name: value for name, value in read.items() if name.startswith("decoder.") and name in wanted}
        wanted["decoder.depth"] = 0
    return [_lost(name, *both) for name, both in differences(wanted, read).items()]


def lost_parameters(family: Family, model: ModelConfig, again: ModelConfig) -> list[str]:
    """Parameters that only one of the two models has in the family's table, such as a logit_bias."""
    own, read = ({tensor.ours for tensor in family.tensors(each)} for each in (model, again))
    return [f"a model with {name}" for name in sorted(own - read)] + [
        f"a model without {name}" for name in sorted(read - own)
    ]


def _read_back(meaning: Meaning, family: Family, shapes: Shapes) -> Meaning:
    return family.read(Description(family.write(meaning), shapes))


def _lost(field: str, value: Any, read: Any) -> str:
    return f"{field}={value!r} (read back as {read!r})"


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
