"""Checks that the parts of an experiment fit each other and the machine, before anything is compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from clipjax.config import ConfigError, ExperimentConfig, ModelConfig, check_values, require
from clipjax.data.images import check_augment, check_pixels
from clipjax.data.mixture import check_mixture
from clipjax.losses import check_loss
from clipjax.mesh import mesh_shape
from clipjax.models import IMAGE_TOWERS, image_tower, patch_budget, text_tower
from clipjax.models.decoder import check_decoder
from clipjax.models.towers import towers_of
from clipjax.optim import check_optimizer
from clipjax.training.cut import check_text_buckets
from clipjax.training.lora import check_lora
from clipjax.training.profile import profile_window
from clipjax.training.trainable import check_trainable, farthest


def check(config: ExperimentConfig, *, num_devices: int, process_count: int = 1) -> None:
    """Refuses combinations that cannot run, before anything is compiled. Raises ConfigError at the first."""
    for refuse in part_checks(config, num_devices=num_devices, process_count=process_count):
        refuse()


def part_checks(
    config: ExperimentConfig, *, num_devices: int, process_count: int = 1
) -> tuple[Callable[[], object], ...]:
    """The checks of `check`, none of which depends on another: each raises ConfigError.

    Raises ConfigError itself for numbers out of range and a mesh that does not fit, with which none could go on.
    """
    check_values(config)
    shape = mesh_shape(config.mesh, num_devices)
    shards, model = shape[0] * shape[1], config.model
    sizes = {"global_batch_size": config.global_batch_size, "eval.batch_size": config.eval.batch_size}
    return (
        partial(check_processes, num_devices, process_count),
        *(partial(check_batch, name, size, shape, process_count) for name, size in sizes.items()),
        partial(check_both_towers, model),
        partial(check_towers, config, tensor=shape[2]),
        partial(check_accumulation, config, shards),
        partial(check_loss, config.loss, model, config.global_batch_size * config.data.captions_per_image // shards),
        partial(check_captions, config),
        partial(check_text_buckets, config),
        partial(check_decoder, model),
        partial(check_embeddings, config),
        partial(check_pixels, config.data.pixels, model.image.image_size),
        partial(check_augment, config.data.augment),
        partial(check_mixture, config.data),
        partial(check_optimizer, config.optimizer, config.total_steps),
        partial(check_trainable, config),
        partial(check_lora, config),
        partial(check_temperature, model),
        partial(check_best_metric, config),
        partial(profile_window, config),
    )


def check_evaluation(config: ExperimentConfig, *, num_devices: int, process_count: int = 1) -> None:
    """Refuses what an evaluation cannot run with; what only training needs may be anything. Raises ConfigError."""
    check_values(config)
    shape = mesh_shape(config.mesh, num_devices)
    check_processes(num_devices, process_count)
    check_batch("eval.batch_size", config.eval.batch_size, shape, process_count)
    check_towers(dataclasses.replace(config, accumulation_steps=1), tensor=shape[2])
    check_pixels(config.data.pixels, config.model.image.image_size)


def check_processes(num_devices: int, process_count: int) -> None:
    """Refuses devices that cannot be spread evenly over the processes. Raises ConfigError."""
    require(
        num_devices % process_count == 0,
        f"{num_devices} devices in {process_count} processes: every process must have the same number of devices.",
    )


def check_batch(name: str, size: int, shape: tuple[int, int, int], process_count: int) -> None:
    """Refuses a batch that does not divide over the mesh (data, fsdp, tensor). Raises ConfigError."""
    shards = shape[0] * shape[1]
    if size % shards == 0:
        return
    divisors = [n for n in range(1, 2 * shards + 1) if size % n == 0]
    nearest = sorted(sorted(divisors, key=lambda n: abs(n - shards))[:2])
    restart = f", or data x fsdp = {' or '.join(map(str, nearest))}, which divide it" if len(nearest) == 2 else ""
    raise ConfigError(
        f"config.{name}={size} does not divide over the mesh: data x fsdp = {shape[0]} x {shape[1]} = "
        f"{shards} devices in {process_count} process(es). Use a multiple of {shards}, "
        f"such as {max(1, round(size / shards)) * shards}{restart}."
    )


def check_accumulation(config: ExperimentConfig, shards: int) -> None:
    """Refuses micro-batches that do not divide the rows of one of `shards` devices. Raises ConfigError."""
    micro = config.accumulation_steps
    require(
        config.global_batch_size % (shards * micro) == 0,
        f"config.accumulation_steps={micro} does not divide the {config.global_batch_size // shards} rows of one "
        f"device (global_batch_size={config.global_batch_size} over {shards}); use a divisor of it.",
    )


def check_captions(config: ExperimentConfig) -> None:
    """Refuses several captions of an image in a step where its loss cannot take them. Raises ConfigError."""
    count = config.data.captions_per_image
    require(
        count == 1 or config.loss.repeats == "positives",
        f"config.data.captions_per_image={count} with config.loss.repeats='{config.loss.repeats}': an image's other "
        "captions would not be its positives. Set config.loss.repeats='positives'.",
    )
    require(
        count == 1 or not (config.model.decoder.depth or config.loss.teacher),
        f"config.data.captions_per_image={count}: loss '{config.loss.name}' compares each image with one caption. Set "
        "captions_per_image=1, or choose a loss without a decoder and a teacher.",
    )


def check_temperature(model: ModelConfig) -> None:
    """Refuses a logit_scale that the first step would cut. Raises ConfigError."""
    require(
        not 0 < model.logit_scale_max < model.logit_scale_init * (1 - 1e-3),
        f"config.model.logit_scale_init={model.logit_scale_init} is above logit_scale_max={model.logit_scale_max}, to "
        "which the first step would cut it; use a smaller one, or a larger logit_scale_max (0: no limit).",
    )


def check_best_metric(config: ExperimentConfig) -> None:
    """Refuses a best_metric that no evaluator of this name reports in time. Raises ConfigError."""
    best = config.checkpoint.best_metric
    require(
        not best or best.split("/")[0] in config.eval.evaluators,
        f"config.checkpoint.best_metric='{best}' must be 'evaluator/metric' with one of the evaluators "
        f"{sorted(config.eval.evaluators)}.",
    )
    require(
        not best or config.eval.every_steps > 0,
        "config.checkpoint.best_metric needs config.eval.every_steps > 0 to have something to compare.",
    )


def check_both_towers(model: ModelConfig) -> None:
    """Refuses to train a model of one tower. Raises ConfigError."""
    for side, other in (("image", "text"), ("text", "image")):
        require(
            side in towers_of(model),
            f"config.model.{side}.name='{getattr(model, side).name}', and training needs both towers. Choose one; the "
            f"weights of the {other} tower can come from config.init_{other}_from.",
        )


def check_towers(config: ExperimentConfig, *, tensor: int) -> None:
    """Runs each tower's own check, then those of the mesh and the micro-batches. Raises ConfigError.

    tensor: length of the mesh's tensor axis.
    """
    model = config.model
    plain = ", ".join(name for name, row in IMAGE_TOWERS.items() if not (row.running_statistics or row.absent))
    for where, row, tower in (
        ("config.model.image", image_tower(model.image), model.image),
        ("config.model.text", text_tower(model.text), model.text),
    ):
        row.check(tower, model.embed_dim)
        sizes = {name: getattr(tower, name) for name in row.tensor_axis}
        require(
            all(size % tensor == 0 for size in sizes.values()),
            f"config.mesh.tensor={tensor} does not divide {where}."
            + " and ".join(f"{name}={size}" for name, size in sizes.items())
            + "; use a tensor axis that divides both.",
        )
    require(
        not image_tower(model.image).running_statistics
        or config.accumulation_steps == 1
        or farthest(config, "image") < math.inf,
        f"config.accumulation_steps={config.accumulation_steps} with config.model.image.name='{model.image.name}': "
        "BatchNorm normalises by statistics of the whole batch, which a micro-batch does not have, so the gradient "
        "would differ. Use accumulation_steps=1 with config.model.image.remat='full' or more devices, a tower "
        f"without BatchNorm ({plain}), or freeze it (config.optimizer.image_lr_multiplier=0, or "
        "image_unlocked_blocks=0 for all except what follows its stages).",
    )


def check_embeddings(config: ExperimentConfig) -> None:
    """Refuses stored embeddings (config.data) that cannot replace what a step would compute. Raises ConfigError."""
    data, image, augment = config.data, config.model.image, config.data.augment
    if not (data.image_embeddings or data.teacher_embeddings):
        return
    require(
        augment.name == "none" and augment.flip == 0,
        f"config.data.augment.name='{augment.name}', flip={augment.flip}: an embedding is of one view of an image, and "
        "training from embeddings sees no other. Set config.data.augment.name='none' and flip=0.0, or train without "
        "config.data.image_embeddings and teacher_embeddings.",
    )
    budget = patch_budget(image)
    require(
        not (budget and budget.training),
        f"config.model.image.patch_budgets={getattr(image, 'patch_budgets', ())}: an embedding is of one view of an "
        "image, and training from embeddings sees no other. Set config.model.image.patch_budgets=(), or train without "
        "config.data.image_embeddings and teacher_embeddings.",
    )
    if data.image_embeddings:
        random = {name: getattr(image, name) for name in image_tower(image).random}
        require(
            config.optimizer.image_lr_multiplier == 0 and not any(random.values()) and not config.model.decoder.depth,
            "config.data.image_embeddings replaces a frozen image tower that draws nothing at random, and gives no "
            "tokens to a decoder: it needs config.optimizer.image_lr_multiplier=0 (found "
            f"{config.optimizer.image_lr_multiplier}), config.model.image without {', '.join(random)} (found {random}) "
            f"and config.model.decoder.depth=0 (found {config.model.decoder.depth}).",
        )
        require(
            not config.loss.teacher or bool(data.teacher_embeddings),
            "config.data.image_embeddings leaves no images for config.loss.teacher: set teacher_embeddings as well.",
        )
    require(
        not data.teacher_embeddings or bool(config.loss.teacher),
        "config.data.teacher_embeddings needs loss 'distill' and config.loss.teacher, whose embeddings they are.",
    )


def check_tokenizer(config: ExperimentConfig, tokenizer: Any) -> None:
    """Refuses a tokenizer whose ids the text tower cannot take or pool. Raises ConfigError."""
    text = config.model.text
    require(
        tokenizer.vocab_size <= text.vocab_size,
        f"{config.tokenizer.path} has {tokenizer.vocab_size} pieces, more than "
        f"config.model.text.vocab_size={text.vocab_size}; set vocab_size to at least {tokenizer.vocab_size}.",
    )
    if refuse := text_tower(text).check_tokenizer:
        refuse(text, tokenizer)
