"""A frozen tower's embeddings of the training data, computed once, to train from instead of running it at every step.

    clipjax embed --config=experiments/lit.py --tower=image --out=data/lit_images
    clipjax train --config=experiments/lit.py --config.data.image_embeddings=data/lit_images --workdir=runs/lit

    clipjax embed --config=experiments/student.py --tower=teacher --out=data/teacher
    clipjax train --config=experiments/student.py --config.data.teacher_embeddings=data/teacher --workdir=runs/student

image: the frozen image tower of LiT (config.optimizer.image_lr_multiplier=0), with the weights of config.init_from.
teacher: both towers of config.loss.teacher, for every caption. Without augmentation only: an embedding is of one view.

On a pod, on every host, as clipjax train; --out is then on storage that all hosts see. Each process reads, embeds and
writes a share of the records, in whole shards.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from clipjax.commands import flags as cli
from clipjax.config import ExperimentConfig, from_config_dict, require
from clipjax.data.embeddings import DTYPES, shares, write_embeddings
from clipjax.data.mixture import open_train
from clipjax.data.tokenizers import make_tokenizer
from clipjax.inference.embed import global_batches, make_embed
from clipjax.mesh import make_mesh, own_rows
from clipjax.models.pixels import image_of
from clipjax.processes import gather_json, wait_for_all
from clipjax.runs.fingerprint import fingerprint
from clipjax.training.check import check, check_embeddings
from clipjax.training.init_from import initial_state
from clipjax.training.precomputed import image_made_by, teacher_made_by
from clipjax.training.state import create_state
from clipjax.training.teacher import load_teacher, teacher_fingerprint


def run(config: ExperimentConfig, tower: str, out: str | Path, *, dtype: str = "float32") -> None:
    """Writes the folder `out`, whole or not at all; does nothing where it is finished and made by the same.

    tower: "image" or "teacher". dtype: how embeddings are stored, float32, float16 or bfloat16.
    All processes must call it together. Raises ConfigError where the tower is not frozen or training would augment,
    ManifestError where `out` holds something else or is not on storage that all processes see.
    """
    fields = {"image": "image_embeddings", "teacher": "teacher_embeddings"}
    require(tower in fields, f"--tower='{tower}' is not one of {', '.join(fields)}.")
    require(dtype in DTYPES, f"--dtype='{dtype}' is not one of {', '.join(DTYPES)}.")
    unset = dataclasses.replace(config.data, image_embeddings="", teacher_embeddings="")
    check_embeddings(dataclasses.replace(config, data=dataclasses.replace(unset, **{fields[tower]: str(out)})))
    config = dataclasses.replace(config, data=unset)
    check(config, num_devices=jax.device_count(), process_count=jax.process_count())
    mesh = make_mesh(config.mesh)
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
    source, prints = open_train(config.data), fingerprint(config, tokenizer)
    if tower == "image":
        state = initial_state(config, mesh, prints) if config.init_from else create_state(config, mesh)
        model, made_by = config, image_made_by(config, state, prints)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
    else:
        teacher = load_teacher(config, mesh, prints)
        made_by = teacher_made_by(config, teacher, prints, teacher_fingerprint(config.loss.teacher))
        # The teacher's model and pixels, this experiment's data, mesh and batch.
        model = dataclasses.replace(teacher.config, mesh=config.mesh, eval=config.eval)
        model = dataclasses.replace(model, data=dataclasses.replace(config.data, pixels=teacher.config.data.pixels))
        variables = teacher.variables
    embed_images, embed_texts = make_embed(model, mesh)
    rows = embedded_rows(
        source,
        # The batches are those of the student: it is its pixels that the teacher is shown, normalised in its own way.
        global_batches(config, mesh, tokenizer, source, shares=shares(len(source), jax.process_count())),
        lambda batch: embed_images(variables, image_of(batch)),
        (lambda texts: embed_own(lambda tokens: embed_texts(variables, tokens), tokenizer(texts)))
        if tower == "teacher"
        else None,
    )
    started, seen = time.perf_counter(), collections.Counter()
    write_embeddings(
        out, counted(rows, seen), made_by | {"dtype": dtype}, process_index=jax.process_index(), gather=gather
    )
    seen = sum(map(collections.Counter, gather(seen)), collections.Counter())
    if jax.process_index() == 0:
        bad = f"; {seen['bad']} of them could not be used" if seen["bad"] else ""
        took = f"{time.perf_counter() - started:.1f} s" if seen else "finished before, nothing to do"
        print(f"{out}: {len(source)} records, {made_by['embed_dim']} numbers each, {took}{bad}")


def embedded_rows(
    source: Any, batches: Iterator[dict[str, jax.Array]], embed_images: Callable, embed_texts: Callable | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None] | None]:
    """(key, image embedding, its captions' embeddings) of this process's records in order; None for bad ones.

    Calls embed_images and embed_texts once for each batch, whatever is in it: they are collective.
    """
    for batch in batches:
        images, index, valid = own_rows(embed_images(batch)), own_rows(batch["index"]), own_rows(batch["valid"])
        records = [source[int(i)] if ok else None for i, ok in zip(index, valid, strict=True)]
        texts = iter(())
        if embed_texts:
            flat = [text for record in records if record for text in record["texts"]]
            texts = iter(embed_texts(flat))
        for i, image, record in zip(index, images, records, strict=True):
            if record:
                yield record["key"], image, np.stack([next(texts) for _ in record["texts"]]) if embed_texts else None
            elif i >= 0:
                yield None


def embed_own(embed_texts: Callable[[np.ndarray], np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Of tokens [n, L], on each process its own and as many as it has, the embeddings [n, D].

    embed_texts: of the same tokens on every process. A collective of all processes.
    """
    if jax.process_count() == 1:
        return embed_texts(tokens)
    sizes = multihost_utils.process_allgather(np.int32(len(tokens)))
    # In steps of 256, so that there are few shapes to compile for.
    padded = np.zeros(((int(sizes.max()) // 256 + 1) * 256, tokens.shape[1]), np.int32)
    padded[: len(tokens)] = tokens
    parts = multihost_utils.process_allgather(padded)
    found = embed_texts(np.concatenate([part[:size] for part, size in zip(parts, sizes, strict=True)]))
    start = int(sizes[: jax.process_index()].sum())
    return found[start : start + len(tokens)]


def counted(rows: Iterator[Any], seen: collections.Counter) -> Iterator[Any]:
    for row in rows:
        seen["read"] += 1
        seen["bad"] += row is None
        yield row


def gather(value: Any) -> list[Any]:
    """gather_json of processes that may come hours after one another: nothing but reading keeps them in step."""
    wait_for_all()
    return gather_json(value)


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("tower", "image", "image (LiT), or teacher (distillation).", flag_values=values)
        flags.DEFINE_string("out", None, "The folder to write.", flag_values=values)
        flags.DEFINE_string("dtype", "float32", "float32, float16 or bfloat16.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config", "out"))
    cli.run_command(values, lambda: run(from_config_dict(values.config), values.tower, values.out, dtype=values.dtype))


if __name__ == "__main__":
    main(sys.argv)
