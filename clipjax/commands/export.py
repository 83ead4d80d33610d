"""Writes a run, or an imported directory, in the files of another library.

    clipjax export runs/siglip exported/ --format=hf
    clipjax export runs/emoji exported/ --format=open_clip --step=best
    clipjax export runs/clip exported/ --format=hf --tower=image          # a CLIPVisionModelWithProjection

The formats are those of transformers (hf), open_clip, big_vision, OpenAI's CLIP and EVA-CLIP.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.preflight import check_folder
from clipjax.config import MeshConfig, TokenizerConfig, require
from clipjax.interop.export import choose_family, pixel_notes, write_files
from clipjax.interop.families import formats
from clipjax.interop.names import InteropError, Meaning, flatten
from clipjax.interop.one_tower import ONE, alone, of_both_towers
from clipjax.interop.tokenizer_export import plan_tokenizer
from clipjax.mesh import make_mesh
from clipjax.models.towers import require_tower, towers_of
from clipjax.runs import open_run
from clipjax.training.state import abstract_state, eval_variables


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
    and print what is lost. tokenizer: write it as well. tower: "image" or "text", to write it alone.
    Raises InteropError naming what the format cannot express, such as a tokenizer that would give other ids there, or
    for a destination that exists; ConfigError for a tower that the model does not have.
    """
    destination = Path(destination)
    if destination.exists():
        raise InteropError(f"{destination} exists already. Name a new directory.")
    require(tower in ("", *ONE), f"--tower='{tower}' is not one of {', '.join(ONE)}.")
    check_folder(destination.parent, "DST")
    mesh = make_mesh(MeshConfig(data=1, fsdp=jax.device_count()))
    with open_run(source, step) as opened:
        config = opened.config
        meaning = Meaning(config.model, config.data.pixels, config.tokenizer)
        if tower:
            require_tower(config.model, tower)
            meaning = alone(meaning, tower)
            config = dataclasses.replace(config, model=meaning.model, tokenizer=meaning.tokenizer)
        target = flatten(eval_variables(abstract_state(config, mesh)))
        name, family, shapes = choose_family(meaning, format, target, nearest_pixels=nearest_pixels)
        planned = None
        if tokenizer and config.tokenizer.path:
            planned = plan_tokenizer(format, of_both_towers(name), config.tokenizer, config.model.text.context_length)
        meaning = meaning._replace(tokenizer=planned.described if planned else TokenizerConfig())
        variables = opened.variables(mesh)
    if tower:
        variables = {collection: {tower: tree[tower]} for collection, tree in variables.items() if tower in tree}
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-"))
    try:
        write_files(temporary, meaning, family, shapes, variables)
        if planned:
            planned.write(temporary)
        temporary.chmod(0o755)
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(
        f"Exported step {opened.step} of {source} as {name} into {destination}"
        + (", without a tokenizer" * (not planned and "text" in towers_of(config.model)))
    )
    for note in pixel_notes(meaning, family, shapes):
        print(note)


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("format", None, f"One of {', '.join(formats())}.", flag_values=values)
        flags.DEFINE_string("step", "latest", "latest, best, or a step number.", flag_values=values)
        nearest = "Write the nearest pixel options if the format cannot express config.data.pixels."
        flags.DEFINE_bool("nearest_pixels", False, nearest, flag_values=values)
        flags.DEFINE_bool("tokenizer", True, "Write the tokenizer as well.", flag_values=values)
        flags.DEFINE_string("tower", "", "image or text: write this tower alone.", flag_values=values)

    command, places, rest = cli.positional(argv, 2, "clipjax export RUN DST --format=...")
    values = cli.parse([command, *rest], __doc__, define, required=("format",), config=False, processes=False)
    options = {name: values[name].value for name in ("format", "step", "nearest_pixels", "tokenizer", "tower")}
    cli.run_command(values, lambda: run(*places, **options))
