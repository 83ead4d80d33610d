"""Which texts of an experiment are padded less than to the whole context, and to which lengths: config.data.text_*.

A causal text tower that pools at the end of the text, and one that masks its padding, computes the same from a text
that is padded less. Batches are cut to one of a few lengths, each of which is a program of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, require
from clipjax.data.cut import Batch, TextCut, counted, cut_texts, ladder
from clipjax.mesh import batch_shards, reading_part
from clipjax.models import patch_budget, random_fields, text_tower
from clipjax.training.teacher import EmbeddedTeacher, Teacher

MAX_PROGRAMS = 16  # of a run's step
# Rows of a device's micro-batch for two lengths, on several devices: the gradient of the text tower is then summed over
# the devices twice. At 200 TFLOP/s and 100 GB/s a device, fewer rows save less than that costs.
MIN_ROWS_OF_SEVERAL = 128
MULTIPLE = 8  # of a length: tiles of the hardware, and kernels of attention


def text_cut(config: ExperimentConfig, teacher: Teacher | EmbeddedTeacher | None = None) -> TextCut | None:
    """How this experiment's training batches are cut; None: their texts have the whole length.

    teacher: one whose own tower needs all columns gets the texts as they are.
    """
    needed = needed_columns(config)
    lengths = chosen_lengths(config)
    if isinstance(needed, str) or len(lengths) == 1:
        return None
    keep_whole = False
    if isinstance(teacher, Teacher):
        of_teacher = needed_columns(teacher.config)
        if isinstance(of_teacher, str):
            keep_whole = True
        else:
            own, needed = needed, lambda ids: np.maximum(own(ids), of_teacher(ids))
    return TextCut(lengths, needed, 0.0 if why_one_length(config) else config.data.short_texts, keep_whole)


def eval_cut(config: ExperimentConfig) -> TextCut | None:
    """How texts are cut where they are only embedded."""
    needed, lengths = needed_columns(config), chosen_lengths(config, training=False)
    return None if isinstance(needed, str) or len(lengths) == 1 else TextCut(lengths, needed)


def cut_batches(
    config: ExperimentConfig,
    mesh: Mesh,
    teacher: Teacher | EmbeddedTeacher | None,
    batches: Iterator[tuple[Batch, Any]],
    largest: Callable[[Sequence[int]], Sequence[int]] = tuple,
) -> Iterator[tuple[Batch, Any]]:
    """This process's batches as the step takes them: their texts are cut as text_cut says. largest: see cut_texts."""
    cut = text_cut(config, teacher)
    if cut is None:
        return batches
    if batch_shards(mesh) > 1:
        cut = cut._replace(min_rows=MIN_ROWS_OF_SEVERAL)
    shards = batch_shards(mesh) // reading_part(mesh)[1] * config.accumulation_steps
    return cut_texts(batches, cut, shards=shards, largest=largest)


def needed_columns(config: ExperimentConfig) -> Any:
    """The text tower's needed(ids), see Tower.needed; or the reason why it needs all columns."""
    tower = text_tower(config.model.text)
    return tower.needed(config.model.text) if tower.needed else f"tower '{config.model.text.name}' reads the padding"


def chosen_lengths(config: ExperimentConfig, *, training: bool = True) -> tuple[int, ...]:
    """The lengths of texts in batches, ascending; the last is the whole context's. One: nothing is cut."""
    whole = config.model.text.context_length
    if given := config.data.text_buckets:
        return tuple(sorted({*given, whole}))
    if isinstance(needed_columns(config), str) or (training and drawn_per_token(config)):
        return (whole,)
    most = max((n for n in range(1, MAX_PROGRAMS + 1) if programs(config, n) <= MAX_PROGRAMS), default=1)
    return ladder(whole, most)


def drawn_per_token(config: ExperimentConfig) -> bool:
    """Whether training drops numbers of the text's tokens at random: a shorter batch would draw others."""
    decoder = config.model.decoder
    return bool(getattr(config.model.text, "dropout", 0) or (decoder.depth and decoder.dropout))


def why_one_length(config: ExperimentConfig) -> str:
    """Why the rows of a batch all have one length, whatever config.data.short_texts; "": they need not."""
    model = config.model
    if random := random_fields(model):
        return f"config.model.{random[0]} draws by the order of the rows"
    if model.decoder.depth:
        return "the captioner reads all texts at once"
    if config.loss.teacher and not config.data.teacher_embeddings:
        return "config.loss.teacher reads all texts at once"
    return ""


def programs(config: ExperimentConfig, lengths: int) -> int:
    """How many programs a step may need for `lengths` lengths of texts: one for each or each pair, and each budget."""
    pairs = config.data.short_texts and not why_one_length(config)
    return (math.comb(lengths + 1, 2) if pairs else lengths) * max(len(budgets(config)), 1)


def budgets(config: ExperimentConfig) -> tuple[int, ...]:
    """The numbers of patches that images may be padded to, each of which is a program; () for images of one size."""
    budget = patch_budget(config.model.image)
    return tuple(sorted(set(budget.training))) if budget else ()


def check_text_buckets(config: ExperimentConfig) -> None:
    """Refuses lengths that would change embeddings, do not fit, or need too many programs. Raises ConfigError."""
    given, whole = config.data.text_buckets, config.model.text.context_length
    require(
        programs(config, 1) <= MAX_PROGRAMS,
        f"config.model.image.patch_budgets={budgets(config)} could compile {programs(config, 1)} programs, more than "
        f"{MAX_PROGRAMS}. Use fewer budgets.",
    )
    if not given:
        return
    where = f"config.data.text_buckets={given}"
    needed = needed_columns(config)
    require(
        not isinstance(needed, str) or set(given) == {whole},
        f"{where}: {needed}. Padding is part of what this text tower reads, as in SigLIP: with less of it, the same "
        f"text would have another embedding. Leave text_buckets empty; all texts are then padded to {whole} tokens.",
    )
    bad = [n for n in given if n > whole or (n < whole and n % MULTIPLE)]
    require(
        not bad,
        f"{where}: {', '.join(map(str, bad))} is neither a multiple of {MULTIPLE} below "
        f"config.model.text.context_length={whole} nor {whole} itself. Use lengths such as "
        f"{', '.join(map(str, ladder(whole, 5)))}.",
    )
    count, lengths = programs(config, len({*given, whole})), len({*given, whole})
    pairs = f" (each pair of {lengths} lengths, as config.data.short_texts={config.data.short_texts})"
    require(
        count <= MAX_PROGRAMS,
        f"{where} could compile {count} programs{pairs if count > lengths else ''}, more than {MAX_PROGRAMS}. Use "
        f"fewer lengths, such as {tuple(ladder(whole, 5))[:-1]}{', or short_texts=0' if count > lengths else ''}.",
    )


def describe_planned(config: ExperimentConfig) -> str:
    """Which of its programs a plan is of; "" where there is one."""
    cut, patches = text_cut(config), budgets(config)
    if cut is None and not patches:
        return ""
    several = [f"texts of {counted(cut.lengths)} tokens"] if cut else []
    several += [f"images of {counted(patches)} patches"] if patches else []
    return f"batches have {' and '.join(several)}; the longest is planned"


def describe_text_cut(config: ExperimentConfig, cut: TextCut | None) -> str:
    """What the first line of a run says about its texts' lengths; "" for a context too short to be cut."""
    whole = config.model.text.context_length
    if cut:
        return f"texts cut to {counted(cut.lengths)} tokens"
    if len(ladder(whole, MAX_PROGRAMS)) == 1:
        return ""
    needed = needed_columns(config)
    if isinstance(needed, str):
        return f"texts of {whole} tokens (not cut: {needed})"
    return f"texts of {whole} tokens"
