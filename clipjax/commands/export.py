"""A run, or an imported directory -> files that transformers, open_clip, big_vision, OpenAI's or EVA-CLIP's code read.

clipjax export runs/siglip exported/ --format=hf
clipjax export runs/emoji exported/ --format=open_clip --step=best
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from absl import flags

from clipjax.commands import flags as cli
from clipjax.config import MeshConfig, ModelConfig
from clipjax.interop.convert import their_arrays
from clipjax.interop.families import FAMILIES, Family, check_towers
from clipjax.interop.foreign import families_of
from clipjax.interop.names import Description, InteropError, Meaning, flatten, their_shapes
from clipjax.interop.safetensors import write_safetensors
from clipjax.interop.tokenizer_files import copy_tokenizer
from clipjax.interop.torch_files import write_torch
from clipjax.mesh import make_mesh
from clipjax.runs import checkpoint as checkpoints
from clipjax.training.state import abstract_state, eval_variables

# Fields that say how a model is trained or laid out and not what it computes.
TRAINING = (
    "init",
    "dropout",
    "drop_path",
    "patch_dropout",
    "scan_layers",
    "remat",
    "attention",
    "attention_chunk",
    "norm_momentum",
)
MODEL_TRAINING = ("decoder", "dtype", "logit_scale_init", "logit_scale_max")


def run(source: str | Path, destination: str | Path, *, format: str, step: str = "latest") -> None:
    """Writes destination/{weights, configuration, preprocessor}, whole or not at all, in float32.

    Raises InteropError naming what the format cannot say about this model, or for a destination that exists.
    """
    destination = Path(destination)
    if destination.exists():
        raise InteropError(f"{destination} exists already; name a new directory.")
    manager, number = checkpoints.open_run(source, step)
    config, _ = checkpoints.read_meta(manager, number)
    mesh = make_mesh(MeshConfig(data=1, fsdp=jax.device_count()))
    meaning = Meaning(config.model, config.data.pixels, config.tokenizer)
    target = flatten(eval_variables(abstract_state(config, mesh)))
    name, family, shapes = choose(meaning, format, target)
    variables = checkpoints.restore_variables(manager, number, config, mesh)
    manager.close()
    constants = family.constants(config.model)
    shapes = shapes | {name: array.shape for name, array in constants.items()}
    arrays = itertools.chain(their_arrays(family.tensors(config.model), config.model, variables), constants.items())
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-"))
    try:
        for file, content in family.write(meaning).items():
            (temporary / file).write_text(json.dumps(content, indent=2) + "\n")
        WRITERS[Path(family.weights).suffix](temporary / family.weights, shapes, arrays)
        if config.tokenizer.path and Path(config.tokenizer.path).exists():
            copy_tokenizer(config.tokenizer.path, temporary)
        temporary.chmod(0o755)
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"Exported step {number} of {source} as {name} into {destination}")


def choose(meaning: Meaning, format: str, target: dict) -> tuple[str, Family, dict[str, tuple[int, ...]]]:
    """(name, family, shapes of its tensors): the first of the format that says all this model is."""
    families = families_of(format)
    if not families:
        known = sorted({family.format for family in FAMILIES.values()})
        raise InteropError(f"Unknown format '{format}'. Known: {', '.join(known)}.")
    reasons = []
    for name, family in families.items():
        try:
            check_towers(family, meaning.model)
            shapes = their_shapes(family.tensors(meaning.model), meaning.model, target)
            read = family.read(Description(family.write(meaning), shapes))
            differing = differences(read.model, meaning.model)
            if not differing:
                return name, family, shapes
            reasons.append(f"  {name}: cannot say {', '.join(differing)}")
        except (InteropError, KeyError) as error:
            reasons.append(f"  {name}: {error}")
    raise InteropError(f"Format '{format}' cannot hold this model:\n" + "\n".join(reasons))


def differences(read: ModelConfig, wanted: ModelConfig) -> list[str]:
    """The fields that would come back with another value."""
    result = []
    for tower in ("image", "text"):
        a, b = getattr(read, tower), getattr(wanted, tower)
        for field in dataclasses.fields(a):
            found, value = getattr(a, field.name), getattr(b, field.name)
            if field.name not in TRAINING and found != value:
                result.append(f"{tower}.{field.name}={value!r} (only {found!r})")
    for field in dataclasses.fields(read):
        if field.name in ("image", "text", *MODEL_TRAINING):
            continue
        found, value = getattr(read, field.name), getattr(wanted, field.name)
        if field.name == "logit_bias_init":
            found, value = found is not None, value is not None
        if found != value:
            result.append(f"{field.name}={value!r} (only {found!r})")
    return result


def write_npz(path: Path, shapes: dict, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """numpy.savez, one array at a time."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array).reshape(shapes[name]), allow_pickle=False)


WRITERS = {".npz": write_npz, ".safetensors": write_safetensors, ".pt": write_torch}


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        formats = sorted({family.format for family in FAMILIES.values()})
        flags.DEFINE_string("format", None, f"One of {', '.join(formats)}.", flag_values=values)
        flags.DEFINE_string("step", "latest", "latest, best, or a step number.", flag_values=values)

    command, places, rest = cli.positional(argv, 2, "clipjax export RUN DST --format=...")
    values = cli.parse([command, *rest], __doc__, define, required=("format",))
    cli.run_command(values, lambda: run(*places, format=values.format, step=values.step))


if __name__ == "__main__":
    main(sys.argv)
