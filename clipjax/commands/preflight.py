"""Everything that can refuse a training run before anything is compiled, written or moved.

`clipjax train` runs these checks and stops at the first error. `clipjax check` runs all of them and lists every error.
What costs little comes first; data is opened last, because indexing it may take minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from clipjax import storage
from clipjax.config import ExperimentConfig, require
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.mixture import crowded, open_train
from clipjax.data.pipeline import TrainIterator, changed_data, check_records, make_train_iterator
from clipjax.data.records import MANIFEST
from clipjax.data.sources import Source
from clipjax.data.tokenizers import Tokenizer, make_tokenizer
from clipjax.inference.evaluate import check_evaluators, open_evaluators
from clipjax.json_files import read_json_object
from clipjax.machine.compute_dtype import check_dtype, choose_dtype
from clipjax.mesh import make_mesh, reading_part
from clipjax.models import patch_budget
from clipjax.processes import announce
from clipjax.runs.fingerprint import fingerprint
from clipjax.runs.integrity import newest_intact
from clipjax.runs.own_files import with_own_tokenizer
from clipjax.runs.resume import Restart, check_restart
from clipjax.runs.run import refuse_as_workdir
from clipjax.runs.sinks import check_sinks
from clipjax.runs.weights import check_init_from, load_teacher, open_named
from clipjax.training.check import check, check_tokenizer
from clipjax.training.precomputed import check_settings, image_settings, teacher_settings

PROBED = 4  # training examples that are made before a run
HEAD = 4096  # bytes of a file by which check_out recognises it
Check = tuple[str, Callable[[], str]]  # its name, and the function that says what it checked, or raises


class Preflight:
    """What a run of a configuration starts from: each part is opened once, when it is first asked for.

    Each of the checks returns a line about what it checked, or raises what `clipjax train` would stop with. Where one
    needs what another could not open, it raises the same error. All processes of a run call them together.
    """

    def __init__(self, config: ExperimentConfig, workdir: str | Path | None = None):
        """workdir: also check that a run may begin or continue there; None: there is no workdir yet."""
        self.workdir = None if workdir is None else storage.as_path(workdir)
        tokenizer = with_own_tokenizer(config.tokenizer, self.workdir)
        model, self.dtype_line = choose_dtype(config.model, began=_begun_dtype(self.workdir))
        self.config = dataclasses.replace(config, tokenizer=tokenizer, model=model)

    @functools.cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.config.mesh)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self.config.tokenizer, self.config.model.text.context_length)

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        return fingerprint(self.config, self.tokenizer)

    @functools.cached_property
    def intact(self) -> tuple[int | None, dict[int, list[str]]]:
        """See clipjax.runs.integrity.newest_intact."""
        return (None, {}) if self.workdir is None else newest_intact(self.workdir)

    @functools.cached_property
    def restart(self) -> Restart | None:
        """The checkpoint to continue from; None where the run begins at step 0."""
        step, _ = self.intact
        return None if step is None else check_restart(self.workdir, step, self.config, self.mesh, self.fingerprint)

    @property
    def finished(self) -> bool:
        """Whether the workdir's run has made all its steps."""
        return self.restart is not None and self.restart.step >= self.config.total_steps

    @functools.cached_property
    def source(self) -> Source:
        return open_train(self.config.data)

    @functools.cached_property
    def batches(self) -> TrainIterator:
        """This process's training iterator, at its first batch."""
        return open_batches(self.config, self.tokenizer, self.source, reading_part(self.mesh))

    @functools.cached_property
    def eval_sources(self) -> dict[str, Source]:
        return open_evaluators(self.config)

    def before_data(self) -> tuple[Check, ...]:
        """The checks that open no data."""
        return (
            ("configuration", self.check_configuration),
            ("tokenizer", self.check_tokenizer),
            ("evaluators", self.check_evaluators),
            ("workdir", self.check_workdir),
            ("init_from", self.check_init_from),
            ("teacher", self.check_teacher),
            ("embeddings", self.check_embeddings),
        )

    def of_data(self) -> tuple[Check, ...]:
        """The checks that open the data, and look at some of it."""
        return ("training data", self.check_training_data), ("evaluation data", self.check_evaluation_data)

    def check_configuration(self) -> str:
        check(self.config, num_devices=jax.device_count(), process_count=jax.process_count())
        check_dtype(self.config.model)
        choose_decoder(self.config.data)
        check_sinks(self.config.log)
        auto = f"; {self.dtype_line.rstrip('.')}" if self.dtype_line else ""
        return f"its parts fit each other and mesh {dict(self.mesh.shape)}{auto}"

    def check_tokenizer(self) -> str:
        check_tokenizer(self.config, self.tokenizer)
        return (
            f"{self.config.tokenizer.path}, {self.tokenizer.vocab_size} pieces of "
            f"{self.config.model.text.vocab_size} in the model"
        )

    def check_evaluators(self) -> str:
        check_evaluators(self.config)
        prompts = self.config.data.train.prompts
        for name, evaluator in self.config.eval.evaluators.items():
            templates = getattr(evaluator, "templates", ())
            if prompts and templates and set(templates) != set(prompts):
                announce(
                    f"config.eval.evaluators.{name}.templates, such as '{templates[0]}', are not the prompts that are "
                    f"trained on, such as '{prompts[0]}' (config.data.train.prompts)."
                )
        return ", ".join(self.config.eval.evaluators)

    def check_workdir(self) -> str:
        if self.workdir is None:
            return ""
        refuse_as_workdir(self.workdir)
        check_folder(self.workdir, "--workdir")
        total = self.config.total_steps
        if self.restart is None:
            return f"{self.workdir} has no checkpoint: a run begins at step 0 of {total}"
        line = f"{self.workdir}: a run {'is finished' if self.finished else 'continues'} at step {self.restart.step}"
        return "\n".join([f"{line} of {total}", *self.restart.changes])

    def check_init_from(self) -> str:
        if self.restart is not None:  # a restart does not read it
            return ""
        return check_init_from(self.config, self.mesh, self.fingerprint)

    def check_teacher(self) -> str:
        load_teacher(self.config, self.mesh, self.fingerprint, shapes_only=True)
        return self.config.loss.teacher

    def check_embeddings(self, source: Source | None = None) -> str:
        """The settings that made stored embeddings; source: the opened training data, to compare it as well."""
        data, own, with_data = self.config.data, self.fingerprint, source is not None
        for field, tower in (("image_embeddings", "image"), ("teacher_embeddings", "teacher")):
            folder = getattr(data, field)
            require(
                not folder or (storage.as_path(folder) / MANIFEST).is_file(),
                f"config.data.{field}={folder} is not a finished folder of embeddings. Write it with clipjax embed "
                f"--config=... --tower={tower} --out={folder}.",
            )
        if data.image_embeddings:
            check_settings(data.image_embeddings, image_settings(self.config, own, source), data=with_data)
        if data.teacher_embeddings:
            with open_named("config.loss.teacher", self.config.loss.teacher) as run:
                expected = teacher_settings(self.config, run.config, own, run.fingerprint, source)
            check_settings(data.teacher_embeddings, expected, data=with_data)
        return ", ".join(filter(None, (data.image_embeddings, data.teacher_embeddings)))

    def check_training_data(self) -> str:
        if self.restart is not None:
            for state in self.restart.data_states[:1]:
                check_records(state, self.source)
                announce(changed_data(state, self.source))
        examples = self.batches.examples  # opens stored embeddings, and counts them
        self.check_embeddings(self.source)
        examples(0, PROBED)
        self.say_repeats()
        return f"{len(self.source)} records, and the first {PROBED} examples can be made"

    def say_repeats(self) -> None:
        """A line for data, or a part of a mixture, of which one batch holds more examples than there are records."""
        config = self.config
        if config.loss.repeats != "negatives":
            return
        for name, examples, records in crowded(self.source, config.global_batch_size):
            field = f"config.data.mixture.{name}" if name else "config.data.train"
            announce(
                f"A batch of {config.global_batch_size:,} has {examples:,} examples of {field}, which has {records:,} "
                "records: the same record is then a wrong answer to itself. Set config.loss.repeats='positives', or "
                "use " + ("a smaller config.global_batch_size." if not name else "a smaller weight.")
            )

    def check_evaluation_data(self) -> str:
        return ", ".join(f"{name} {len(source)} records" for name, source in self.eval_sources.items())


def _begun_dtype(workdir: Path | None) -> str:
    """What the run in a workdir computes in, as its config.json names it; "" where none has begun."""
    model = read_json_object(workdir / "config.json").get("model") if workdir else None
    dtype = model.get("dtype") if isinstance(model, dict) else None
    return dtype if dtype in ("float32", "bfloat16") else ""


def check_folder(folder: Path, flag: str) -> None:
    """Refuses a folder for results that cannot be made or written to, before they are computed. Raises ConfigError."""
    if storage.is_remote(folder):
        storage.check_writable(folder)
        return
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    require(existing.is_dir(), f"{flag}: {folder} cannot be made, because {existing} is not a folder.")
    require(os.access(existing, os.W_OK | os.X_OK), f"{flag}: {folder} cannot be written to: no permission.")


def check_out(out: Path, is_own: Callable[[str], bool], own: str) -> None:
    """Raises ConfigError for a folder, for a place that cannot be written, and for a file of somebody else.

    is_own: whether a file that begins like this was written by the command. own: what that is, for people.
    """
    require(not out.is_dir(), f"--out={out} is a folder; name a file in it.")
    check_folder(out.parent, "--out")
    if out.is_file():
        with out.open("rb") as file:
            head = file.read(HEAD)
        # An empty file, such as mktemp makes, holds nothing to lose.
        require(
            not head or is_own(head.decode(errors="replace")),
            f"--out={out} exists and is not {own}: only such a file is replaced. Name another file, or move this one "
            "away.",
        )


def open_batches(
    config: ExperimentConfig, tokenizer: Tokenizer, source: Source, part: tuple[int, int] = (0, 1)
) -> TrainIterator:
    """This process's training iterator, at its first batch; see data/pipeline.py. part: mesh.reading_part."""
    return make_train_iterator(
        config.data,
        source=source,
        tokenizer=tokenizer,
        image_size=config.model.image.image_size,
        budget=patch_budget(config.model.image),
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        process_index=part[0],
        process_count=part[1],
    )
