"""Writes a run, or an imported directory, in the files of another library.

    clipjax export runs/siglip exported/ --format=hf
    clipjax export runs/emoji exported/ --format=open_clip --step=best

The formats are those of transformers (hf), open_clip, big_vision, OpenAI's CLIP and EVA-CLIP.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from absl import flags

from clipjax.commands import flags as cli
from clipjax.config import MeshConfig, ModelConfig, declared, differences, flat
from clipjax.interop.convert import their_arrays
from clipjax.interop.families import FAMILIES, Family, check_towers
from clipjax.interop.foreign import families_of
from clipjax.interop.names import Description, InteropError, Meaning, flatten, their_shapes
from clipjax.interop.safetensors import write_safetensors
from clipjax.interop.tokenizer_files import copy_tokenizer
from clipjax.interop.torch_files import write_torch
from clipjax.mesh import make_mesh
from clipjax.runs import open_run
from clipjax.training.state import abstract_state, eval_variables


def run(source: str | Path, destination: str | Path, *, format: str, step: str = "latest") -> None:
    """Writes destination/{weights, configuration, preprocessor}, whole or not at all; weights are float32.

    Raises InteropError naming what the format cannot express about this model, or for a destination that exists.
    """
    destination = Path(destination)
    if destination.exists():
        raise InteropError(f"{destination} exists already; name a new directory.")
    mesh = make_mesh(MeshConfig(data=1, fsdp=jax.device_count()))
    with open_run(source, step) as opened:
        config = opened.config
        meaning = Meaning(config.model, config.data.pixels, config.tokenizer)
        target = flatten(eval_variables(abstract_state(config, mesh)))
        name, family, shapes = choose(meaning, format, target)
        variables = opened.variables(mesh)
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
    print(f"Exported step {opened.step} of {source} as {name} into {destination}")


def choose(meaning: Meaning, format: str, target: dict) -> tuple[str, Family, dict[str, tuple[int, ...]]]:
    """The first family of the format that can express this model: (name, family, shapes of its tensors)."""
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
            lost = lost_options(read.model, meaning.model)
            if not lost:
                return name, family, shapes
            reasons.append(f"  {name}: cannot express {', '.join(lost)}")
        except (InteropError, KeyError) as error:
            reasons.append(f"  {name}: {error}")
    raise InteropError(f"Format '{format}' cannot hold this model:\n" + "\n".join(reasons))


def lost_options(read: ModelConfig, written: ModelConfig) -> list[str]:
    """The options that a reader would get with another value, of those that decide what the weights mean."""
    roles = declared(read, written)
    lost = [
        f"{name}={ours!r} (only {theirs!r})"
        for name, (theirs, ours) in differences(flat(read), flat(written)).items()
        if roles[name].role in ("weights", "meaning") and not name.startswith("decoder.")
    ]
    biases = [model.logit_bias_init is not None for model in (read, written)]
    return lost + [f"a logit bias: {biases[1]} (only {biases[0]})"] * (biases[0] != biases[1])


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
