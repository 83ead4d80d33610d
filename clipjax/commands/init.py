"""Writes a small experiment for your own images and captions, with a tokenizer trained on them.

    clipjax init mine.py --data=photos                  # images with NAME.txt beside NAME.jpg, or in class folders
    clipjax init mine.py --data=photos/captions.csv     # a .csv, .tsv or .jsonl table of paths and captions
    clipjax init mine.py --data="shards/*.tar"          # tars (webdataset), Parquet files, or records of clipjax

    clipjax train --config=mine.py --workdir=runs/mine  # trains it as it is

It looks at the data and prints what it found. Without a split to evaluate on (a folder, file or table named
validation, val, dev or test), every tenth record is held out. The tokenizer is written beside the experiment, as
mine.model. Sizes follow from the number of records and from this machine's devices; the file says how, to be changed.
Nothing is overwritten. docs/own_data.md has more.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.bucket_paths import refuse_remote
from clipjax.commands.init_file import choose_size, experiment_text
from clipjax.commands.init_look import Looked, describe_bad, look, train_tokenizer
from clipjax.config import ConfigError, require
from clipjax.data.bad_records import MAX_ATTEMPTS
from clipjax.files import replacing, write_text
from clipjax.storage import is_remote

RISK = 0.01  # that bad records stop the training


def run(
    out: str | Path, data: str | Path, *, image_key: str = "", text_key: str = "", label_key: str = ""
) -> tuple[Path, Path]:
    """Writes the experiment `out` and a tokenizer beside it; returns both paths.

    image_key, text_key, label_key: columns of a table or of Parquet files, where their names are not the usual ones.
    Raises ConfigError for files that exist already, for data in which nothing or several things are found, and for
    data without captions or with mostly bad records.
    """
    refuse_remote("", str(out), "Name a file here; it is small.")
    out = Path(out)
    model = out.with_suffix(".model")
    require(out.suffix == ".py" and ":" not in str(out), f"{out}: expected the name of a Python file, such as mine.py.")
    for path in (out, model):
        require(not path.exists(), f"{path} exists already. Name a new file.")
    looked = look(data, {"image_key": image_key, "text_key": text_key, "label_key": label_key})
    print(f"Found {looked.found.what}.")
    print(f"{looked.trained:,} records to train on, {looked.held_out:,} to evaluate on ({looked.split}).", flush=True)
    if looked.bad:
        bad = describe_bad(looked.bad)
        print(f"Of {looked.read:,} records that were read, {len(looked.bad)} cannot be used: {bad}.", flush=True)
    device, count = jax.devices()[0].platform, jax.device_count()
    size = choose_size(looked.usable, device, count)
    _refuse_too_many_bad(data, looked, size.batch * size.steps)
    content, pieces, longest = train_tokenizer(looked)
    text = experiment_text(looked, size, model.name, pieces, longest, _data_path(data, out), out)
    ast.parse(text, str(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(model) as temporary:
            temporary.write_bytes(content)
        write_text(out, text)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}.") from error
    _tell(out, model, pieces, looked, size.words)
    return out, model


def _refuse_too_many_bad(data: str | Path, looked: Looked, images: int) -> None:
    """Refuses data if its bad records stop training on this many images with a probability of RISK or more."""
    require(
        looked.bad_share**MAX_ATTEMPTS * images < RISK,
        f"--data={data}: {len(looked.bad):,} of {looked.read:,} records cannot be used: {describe_bad(looked.bad)}. "
        f"Training could stop: it does when {MAX_ATTEMPTS} records drawn in a row are bad. Repair or remove them, or "
        "write the good ones with python -m data_pipelines.prepare (docs/data_pipelines.md).",
    )


def _data_path(data: str | Path, out: Path) -> str:
    """The data's path as the file names it: whole if it was given so, else from the experiment's folder."""
    if os.path.isabs(data) or is_remote(data):
        return str(data)
    return os.path.relpath(os.path.abspath(data), os.path.abspath(out.parent))


def _tell(out: Path, model: Path, pieces: int, looked: Looked, size: str) -> None:
    shown = f"'{out}'" if " " in str(out) else str(out)
    workdir = f"runs/{out.stem}"
    print(f"Wrote {model}: {pieces:,} pieces, trained on {len(looked.texts):,} captions.")
    print(f"Wrote {out}: {size}.")
    print(f"  clipjax check --config={shown}")
    print(f"  clipjax train --config={shown} --workdir={repr(workdir) if ' ' in workdir else workdir}")


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("data", None, "A folder, a table, tars, Parquet files or records.", flag_values=values)
        for name, what in (("image", "images or their paths"), ("text", "captions"), ("label", "classes")):
            help = f"The column of {what}, if it has an unusual name."
            flags.DEFINE_string(f"{name}_key", "", help, flag_values=values)

    command, places, rest = cli.positional(argv, 1, "clipjax init FILE.py --data=PATH")
    values = cli.parse([command, *rest], __doc__, define, required=("data",), config=False, processes=False)
    keys = {name: values[name].value for name in ("image_key", "text_key", "label_key")}
    sys.stdout.flush()
    cli.run_command(values, lambda: run(places[0], values.data, **keys))
