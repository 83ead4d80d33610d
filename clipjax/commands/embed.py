"""Embeds the training data once with a frozen tower, so that training does not run the tower at every step.

    clipjax embed --config=experiments/lit.py --tower=image --out=data/lit_images
    clipjax train --config=experiments/lit.py --config.data.image_embeddings=data/lit_images --workdir=runs/lit

    clipjax embed --config=experiments/student.py --tower=teacher --out=data/teacher
    clipjax train --config=experiments/student.py --config.data.teacher_embeddings=data/teacher --workdir=runs/student

image: the frozen image tower of LiT (config.optimizer.image_lr_multiplier=0), with the weights of config.init_from.
teacher: both towers of config.loss.teacher, for every caption. Augmentation must be off: an embedding is of one view.

On a pod, run it on every host, as clipjax train; --out must be on storage that all hosts see. Each process reads,
embeds and writes a share of the records, in whole shards.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from clipjax.commands import flags as cli
from clipjax.commands.preflight import check_folder
from clipjax.config import ExperimentConfig, require
from clipjax.data.embeddings import DTYPES, check_destination, write_embeddings
from clipjax.data.mixture import open_train
from clipjax.data.tokenizers import make_tokenizer
from clipjax.inference.precompute import counted, embed_source
from clipjax.machine.compute_dtype import check_dtype, choose_dtype
from clipjax.mesh import make_mesh, reading_part
from clipjax.processes import announce, gather_json, wait_for_all
from clipjax.runs.fingerprint import fingerprint
from clipjax.runs.weights import check_init_from, first_state, initialised, open_named
from clipjax.storage import as_path, is_remote
from clipjax.training.check import check, check_embeddings, check_tokenizer
from clipjax.training.precomputed import image_made_by, image_settings, teacher_made_by, teacher_settings
from clipjax.training.state import raw_variables
from clipjax.training.teacher import make_teacher

FIELDS = {"image": "image_embeddings", "teacher": "teacher_embeddings"}  # --tower -> the field of config.data


def run(config: ExperimentConfig, tower: str, out: str | Path, *, dtype: str = "float32") -> None:
    """Writes the folder `out`, whole or not at all; does nothing if it is finished and was made by the same weights.

    tower: "image" or "teacher". dtype: how embeddings are stored: float32, float16 or bfloat16.
    All processes call it together. Raises ConfigError where the tower is not frozen or training would augment,
    ManifestError where `out` holds something else or is not on storage that all processes see.
    """
    require(tower in FIELDS, f"--tower='{tower}' is not one of {', '.join(FIELDS)}.")
    require(dtype in DTYPES, f"--dtype='{dtype}' is not one of {', '.join(DTYPES)}.")
    unset = dataclasses.replace(config.data, image_embeddings="", teacher_embeddings="")
    check_embeddings(dataclasses.replace(config, data=dataclasses.replace(unset, **{FIELDS[tower]: str(out)})))
    model, line = choose_dtype(config.model)
    check_dtype(model)
    announce(line)
    config = dataclasses.replace(config, data=unset, model=model)
    check(config, num_devices=jax.device_count(), process_count=jax.process_count())
    mesh = make_mesh(config.mesh)
    require(
        reading_part(mesh)[1] == jax.process_count(),
        f"config.mesh.tensor={config.mesh.tensor} runs between processes, each of which must embed records of its own. "
        "Use --config.mesh.tensor=1.",
    )
    out = as_path(out)
    check_folder(out if is_remote(out) else out.parent, "--out")
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
    check_tokenizer(config, tokenizer)
    own = fingerprint(config, tokenizer)
    made_with = {"image": image_made_with, "teacher": teacher_made_with}[tower]
    made_with(config, mesh, own, None)  # refuses missing or unfit weights before the data is indexed
    source = open_train(config.data)
    check_destination(out, made_with(config, mesh, own, source) | {"dtype": dtype})
    open_tower = {"image": open_image_tower, "teacher": open_teacher}[tower]
    model, variables, made_by = open_tower(config, mesh, own)
    rows = embed_source(model, variables, config, mesh, tokenizer, source, texts=tower == "teacher")
    started, seen = time.perf_counter(), collections.Counter()
    write_embeddings(
        out, counted(rows, seen), made_by | {"dtype": dtype}, process_index=jax.process_index(), gather=gather
    )
    seen = sum(map(collections.Counter, gather(seen)), collections.Counter())
    if jax.process_index() == 0:
        bad = f"; {seen['bad']} of them could not be used" if seen["bad"] else ""
        took = f"{time.perf_counter() - started:.1f} s" if seen else "finished before, nothing to do"
        print(f"{out}: {len(source)} records, {made_by['embed_dim']} numbers each, {took}{bad}")


def image_made_with(config: ExperimentConfig, mesh: Mesh, own: dict[str, Any], source: Any) -> dict[str, Any]:
    """What is known of the embeddings before weights are read. Raises what open_image_tower would raise."""
    if initialised(config):
        check_init_from(config, mesh, own)
    return image_settings(config, own, source)


def teacher_made_with(config: ExperimentConfig, mesh: Mesh, own: dict[str, Any], source: Any) -> dict[str, Any]:
    """What is known of the embeddings before weights are read. Raises what open_teacher would raise."""
    with open_named("config.loss.teacher", config.loss.teacher) as run:
        make_teacher(config, mesh, run, own, shapes_only=True)
        return teacher_settings(config, run.config, own, run.fingerprint, source)


Opened = tuple[ExperimentConfig, dict[str, Any], dict[str, Any]]  # the model that embeds, its variables, made_by


def open_image_tower(config: ExperimentConfig, mesh: Mesh, own_fingerprint: dict[str, Any]) -> Opened:
    """The image tower that training would start with."""
    state = first_state(config, mesh, own_fingerprint)
    variables = raw_variables(state)
    return config, variables, image_made_by(config, state, own_fingerprint)


def open_teacher(config: ExperimentConfig, mesh: Mesh, own_fingerprint: dict[str, Any]) -> Opened:
    """The teacher's model and pixel normalisation, with this experiment's data, mesh and batch size."""
    with open_named("config.loss.teacher", config.loss.teacher) as run:
        teacher = make_teacher(config, mesh, run, own_fingerprint)
        made_by = teacher_made_by(config, teacher, own_fingerprint, run.fingerprint)
    data = dataclasses.replace(config.data, pixels=teacher.config.data.pixels)
    model = dataclasses.replace(teacher.config, mesh=config.mesh, eval=config.eval, data=data)
    return model, teacher.variables, made_by


def gather(value: Any) -> list[Any]:
    """gather_json for processes that may arrive hours apart, since nothing but reading keeps them in step."""
    wait_for_all()
    return gather_json(value)


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("tower", "image", "image (LiT), or teacher (distillation).", flag_values=values)
        flags.DEFINE_string("out", None, "The folder to write.", flag_values=values)
        flags.DEFINE_string("dtype", "float32", "float32, float16 or bfloat16.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config", "out"))
    cli.run_command(values, lambda: run(cli.experiment_of(values), values.tower, values.out, dtype=values.dtype))
