"""Writes a run, or an imported directory, in the files of another library.

    clipjax export runs/siglip exported/ --format=hf
    clipjax export runs/emoji exported/ --format=open_clip --step=best
    clipjax export runs/lora adapters/ --format=peft
    clipjax export runs/clip exported/ --format=hf --tower=image          # a CLIPVisionModelWithProjection

The formats are those of transformers (hf), open_clip, big_vision, OpenAI's CLIP and EVA-CLIP. A run's adapters
(config.lora) are merged into the weights; --format=peft and --format=adapters write them alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh

from clipjax.commands import flags as cli
from clipjax.commands.preflight import check_folder
from clipjax.config import LoraConfig, MeshConfig, TokenizerConfig, require
from clipjax.files import making_folder
from clipjax.interop import peft
from clipjax.interop.export import choose_family, pixel_notes, write_files
from clipjax.interop.families import formats
from clipjax.interop.names import InteropError, Meaning, flatten
from clipjax.interop.one_tower import ONE, alone, of_both_towers
from clipjax.interop.tokenizer_export import plan_tokenizer
from clipjax.mesh import make_mesh, to_host
from clipjax.models.towers import require_tower, towers_of
from clipjax.optim.layers import ADAPTERS
from clipjax.runs import Run, open_run
from clipjax.storage import as_path, is_there
from clipjax.training.state import abstract_state, eval_variables
from clipjax.training.trainable import trained


def run(
    source: str | Path,
    destination: str | Path,
    *,
    format: str,
    step: str = "latest",
    nearest_pixels: bool = False,
    tokenizer: bool = True,
    tower: str = "",
) -> None:
    """Writes weights (float32), configuration, preprocessing and tokenizer to destination, all of it or nothing.

    step: "latest", "best" or a number. nearest_pixels: write even if the format cannot express how images are prepared,
    and print what is lost. tokenizer: write it as well. tower: "image" or "text", to write it alone. format "peft" or
    "adapters": see clipjax.interop.peft; these three options are refused. Raises InteropError naming what the format
    cannot express, such as a tokenizer that would give other ids there, or for a destination that exists; ConfigError
    for a tower that the model does not have.
    """
    destination = as_path(destination)
    if is_there(destination):
        raise InteropError(f"{destination} exists already. Name a new directory.")
    require(tower in ("", *ONE), f"--tower='{tower}' is not one of {', '.join(ONE)}.")
    refuse_unused(format, nearest_pixels=nearest_pixels, notokenizer=not tokenizer, tower=bool(tower))
    check_folder(destination.parent, "DST")
    mesh = make_mesh(MeshConfig(data=1, fsdp=jax.device_count()))
    if format in peft.FORMATS:
        with open_run(source, step) as opened, making_folder(destination) as folder:
            write_adapters(opened, folder, format, mesh)
        print(f"Exported the adapters of step {opened.step} of {source} for {format} into {destination}")
        return
    with open_run(source, step) as opened:
        config = opened.config
        meaning = Meaning(config.model, config.data.pixels, config.tokenizer)
        if tower:
            require_tower(config.model, tower)
            meaning = alone(meaning, tower)
            # Adapters are merged, and the tower that is left out has no matrices to adapt.
            config = dataclasses.replace(config, model=meaning.model, tokenizer=meaning.tokenizer, lora=LoraConfig())
        target = flatten(eval_variables(abstract_state(config, mesh)))
        name, family, shapes = choose_family(meaning, format, target, nearest_pixels=nearest_pixels)
        planned = None
        if tokenizer and config.tokenizer.path:
            planned = plan_tokenizer(format, of_both_towers(name), config.tokenizer, config.model.text.context_length)
        meaning = meaning._replace(tokenizer=planned.described if planned else TokenizerConfig())
        variables = opened.variables(mesh)
    if tower:
        variables = {collection: {tower: tree[tower]} for collection, tree in variables.items() if tower in tree}
    with making_folder(destination) as temporary:
        write_files(temporary, meaning, family, shapes, variables)
        if planned:
            planned.write(temporary)
    print(
        f"Exported step {opened.step} of {source} as {name} into {destination}"
        + (", without a tokenizer" * (not planned and "text" in towers_of(config.model)))
    )
    for note in pixel_notes(meaning, family, shapes):
        print(note)


def refuse_unused(format: str, **given: bool) -> None:
    """Raises InteropError naming options that were given, where the format writes adapters alone and has no use for any
    of them."""
    unused = [f"--{name}" for name, is_given in given.items() if is_given]
    if format in peft.FORMATS and unused:
        raise InteropError(
            f"--format={format} writes the adapters of both towers, without pixels or a tokenizer, and takes no "
            f"{', '.join(unused)}. Leave that out, or export the whole model, for example with --format=hf."
        )


def write_adapters(opened: Run, folder: Path, format: str, mesh: Mesh) -> None:
    """Writes a run's adapters alone. Raises InteropError where the format cannot hold what the run trained."""
    config = opened.config
    shapes = abstract_state(config, mesh)
    peft.check_adapters(config, format, jax.eval_shape(lambda params: trained(config, params), shapes.params))
    family = None
    if format == "peft":
        meaning = Meaning(config.model, config.data.pixels)
        _, family, _ = choose_family(meaning, "hf", flatten(eval_variables(shapes)), nearest_pixels=True)
    params = opened.variables_with_adapters(mesh)["params"]
    part = to_host(trained(config, params) | {ADAPTERS: params[ADAPTERS]})
    if family:
        peft.write_peft(folder, config, family, part[ADAPTERS])
    else:
        peft.write_adapters(folder, config, part)


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        known = ", ".join([*formats(), *peft.FORMATS])
        flags.DEFINE_string("format", None, f"One of {known}.", flag_values=values)
        flags.DEFINE_string("step", "latest", "latest, best, or a step number.", flag_values=values)
        nearest = "Write the nearest pixel options if the format cannot express config.data.pixels."
        flags.DEFINE_bool("nearest_pixels", False, nearest, flag_values=values)
        flags.DEFINE_bool("tokenizer", True, "Write the tokenizer as well.", flag_values=values)
        flags.DEFINE_string("tower", "", "image or text: write this tower alone.", flag_values=values)

    command, places, rest = cli.positional(argv, 2, "clipjax export RUN DST --format=...")
    values = cli.parse([command, *rest], __doc__, define, required=("format",), config=False, processes=False)
    options = {name: values[name].value for name in ("format", "step", "nearest_pixels", "tokenizer", "tower")}
    cli.run_command(values, lambda: run(*places, **options))
