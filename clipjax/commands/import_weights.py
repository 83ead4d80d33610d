"""Turns published weights into a directory like a run's, which can be evaluated, distilled from or trained from.

    clipjax import ~/models/siglip-base-patch16-224 runs/siglip        # a directory of transformers or open_clip
    clipjax import ViT-B-32.pt runs/clip_b32                           # an archive of OpenAI's
    clipjax import webli_i18n_so400m.npz runs/so400m --preset=siglip_so400m14_384

SRC is a file or directory here or in a bucket (gs://, s3://); nothing else is downloaded. DST may be in a bucket too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.commands.bucket_paths import fetched
from clipjax.commands.preflight import check_folder
from clipjax.config import ExperimentConfig, MeshConfig, TokenizerConfig, to_json_dict
from clipjax.data.tokenizers import make_tokenizer
from clipjax.files import making_folder, printable
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import InteropError
from clipjax.interop.parity import parity_report
from clipjax.interop.tokenizer_files import copy_tokenizer, no_tokenizer
from clipjax.mesh import make_mesh
from clipjax.models.towers import towers_of
from clipjax.models.towers.absent import a_tower
from clipjax.runs.checkpoint import save_weights
from clipjax.runs.fingerprint import fingerprint
from clipjax.runs.orbax_buckets import MARKER
from clipjax.runs.run import is_workdir
from clipjax.storage import AnyPath, as_path, is_remote, is_there

NO_TOKENIZER = SimpleNamespace(config=TokenizerConfig(), sha256="", vocab_size=0, pad_id=0, eos_id=0)


def run(
    source: str,
    destination: str | Path,
    *,
    family: str = "",
    preset: str = "",
    state_dict: str = "",
    parity: bool = True,
) -> None:
    """Writes destination/{checkpoints/0, config.json, tokenizer files, parity.json}, all of it or nothing.

    family, preset, state_dict: see open_foreign. parity: compare with the original library, if it is installed.
    Raises InteropError for a source that is incomplete or damaged, or that the original library computes otherwise, and
    for a destination that exists.
    """
    destination = as_path(destination)
    if is_there(destination):
        raise InteropError(f"{destination} exists already. Name a new directory.")
    place = as_path(source)
    if is_workdir(place):
        raise InteropError(
            f"{source} is a folder of clipjax, a run's or an import's, and needs no import: name it as it is, with "
            "--checkpoint, config.init_from or clipjax.load."
            + ("" if is_there(place / "checkpoints") else " It has saved no checkpoint yet.")
        )
    check_folder(destination if is_remote(destination) else destination.parent, "DST")
    with fetched(source) if is_remote(source) else contextlib.nullcontext(source) as local:
        _import(str(local), destination, family, preset, state_dict, parity)


def _import(source: str, destination: AnyPath, family: str, preset: str, state_dict: str, parity: bool) -> None:
    foreign = open_foreign(source, family, preset, state_dict, tell=False)  # the last line tells
    with making_folder(destination) as temporary:
        config = foreign.config
        if config.tokenizer.path:
            make_tokenizer(config.tokenizer, config.model.text.context_length)  # refuses it before anything is written
            tokenizer = dataclasses.replace(config.tokenizer, path=copy_tokenizer(config.tokenizer.path, temporary))
            config = dataclasses.replace(config, tokenizer=tokenizer)
        own_fingerprint = weights_fingerprint(foreign.config)
        mesh = make_mesh(MeshConfig(data=1, fsdp=jax.device_count()))
        variables = foreign.variables(mesh)
        save_weights(
            temporary,
            variables,
            config=config,
            fingerprint=own_fingerprint,
            own_tokenizer=bool(config.tokenizer.path),
        )
        if is_remote(destination):
            (temporary / "checkpoints" / "0" / MARKER).touch()  # what a whole checkpoint has there
        (temporary / "config.json").write_text(json.dumps(to_json_dict(config), indent=2, sort_keys=True))
        summary = "Not compared with the original library (--noparity)."
        if parity:
            document, summary = parity_report(foreign, variables)
            if document.get("differences"):
                listed = "".join(f"\n  {difference}" for difference in document["differences"])
                raise InteropError(
                    f"{source}: clipjax computes other results than the original library:{listed}\n{summary}\n"
                    "Nothing was imported. --noparity imports it without comparing."
                )
            (temporary / "parity.json").write_text(json.dumps(document, indent=2, sort_keys=True))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    towers = towers_of(config.model)
    without = "" if config.tokenizer.path or "text" not in towers else ", WITHOUT A TOKENIZER"
    only = f", {a_tower(towers[0])} alone" if len(towers) == 1 else ""
    print(f"Imported {foreign.name}{only}, {count / 1e6:.2f}M parameters, into {destination}{without}\n{summary}")
    if foreign.source.others:
        print(f"Read {foreign.source.weights}. Not read: {', '.join(foreign.source.others)}.")
    if without:
        print(printable(no_tokenizer(source, foreign.name, foreign.source.description.beside, preset)))


def weights_fingerprint(config: ExperimentConfig) -> dict[str, Any]:
    """The fingerprint, without the tokenizer's entries if the weights came without a tokenizer."""
    if config.tokenizer.path:
        return fingerprint(config, make_tokenizer(config.tokenizer, config.model.text.context_length))
    entries = fingerprint(config, NO_TOKENIZER)
    return {name: value for name, value in entries.items() if not name.startswith("tokenizer.")}


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("family", "", "The family, where the files do not say it.", flag_values=values)
        flags.DEFINE_string("preset", "", "A preset, where the files have no configuration.", flag_values=values)
        flags.DEFINE_string("state_dict", "", "The model, where a checkpoint holds several.", flag_values=values)
        flags.DEFINE_bool("parity", True, "Compare with the original library, if it is installed.", flag_values=values)

    command, places, rest = cli.positional(argv, 2, "clipjax import SRC DST")
    values = cli.parse([command, *rest], __doc__, define, config=False, processes=False)
    options = {name: values[name].value for name in ("family", "preset", "state_dict", "parity")}
    cli.run_command(values, lambda: run(*places, **options))
