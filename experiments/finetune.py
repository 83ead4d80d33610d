r"""Fine-tunes any checkpoint on any data: docs/finetuning.md has three recipes.

    clipjax import ~/models/clip-vit-base-patch32 weights/clip
    clipjax train --config=experiments/finetune.py:weights/clip,data/mine --workdir=runs/mine
    clipjax train --config=experiments/finetune.py:weights/clip,data/mine,lora,sigmoid --workdir=runs/mine-lora

The argument is CHECKPOINT,DATA and at most one word of each kind, in any order. CHECKPOINT is a run's --workdir or what
clipjax import wrote; DATA is a folder or file that clipjax recognises: records, tars, Parquet, a table, images with
captions beside them, folders of classes.

    method   full (default), freeze_image (LiT), freeze_text, heads, lastK (the last K blocks, such as last2), lora
    loss     softmax (default), sigmoid
    texts    captions, prompts; default: captions if there are any, else prompts with the names of the classes

Model, tokenizer and pixels are the checkpoint's. Everything else is a field: --config.optimizer.layer_decay=0.75,
--config.lora.rank=16, --config.init_temperature=restarted, --config.data.captions_per_image=2, ...
"""

import dataclasses
import re

from ml_collections import ConfigDict

from clipjax.config import SourceConfig, default_config, require
from clipjax.data.finding import find_data
from clipjax.data.sources import open_source
from clipjax.inference.looking import evaluators_of, has_captions
from clipjax.runs import open_run

EPOCHS, LARGEST_BATCH = 5, 128
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "{}")  # for data that bring none
# For published models of ViT-B's size. Tenfold for models of a few million parameters, such as this repository's.
LEARNING_RATES = {
    "full": 1e-5, "freeze_image": 1e-5, "freeze_text": 1e-5, "last": 3e-5, "heads": 1e-3, "lora": 2e-4,
}  # fmt: skip
WORDS = {
    "method": r"full|freeze_image|freeze_text|heads|last\d+|lora",
    "loss": r"softmax|sigmoid",
    "texts": r"captions|prompts",
}
DEFAULTS = {"method": "full", "loss": "softmax", "texts": ""}  # texts "": captions, if there are any


def get_config(argument: str) -> ConfigDict:
    checkpoint, data, method, loss, texts = _read(argument)
    with open_run(checkpoint) as run:
        start = run.config
    train, held_out = _sources(data)
    source = open_source(train)

    config = default_config()
    config.init_from = checkpoint
    config.model, config.tokenizer, config.data.pixels = start.model, start.tokenizer, start.data.pixels

    # A batch without the same image twice.
    batch = config.global_batch_size = 2 ** (min(LARGEST_BATCH, len(source)).bit_length() - 1)
    steps = config.total_steps = max(20, EPOCHS * len(source) // batch)
    config.loss.name = loss
    config.loss.repeats = "positives"  # images of one class, an image's captions, records with one pair_id
    kind = "last" if method.startswith("last") else method
    optimizer = config.optimizer
    optimizer.update(learning_rate=LEARNING_RATES[kind], weight_decay=0.1, grad_clip_norm=1.0)
    optimizer.schedule.warmup_steps = steps // 10
    if loss == "sigmoid" and start.model.logit_bias_init is None:
        # The checkpoint has no bias, and its temperature was learnt without one: both start, and move, as SigLIP's did.
        config.init_temperature = "restarted"
        config.model.update(logit_scale_init=10.0, logit_bias_init=-10.0)
        optimizer.temperature_lr_multiplier = 1e-3 / optimizer.learning_rate
    if kind == "freeze_image":
        optimizer.image_lr_multiplier = 0.0
    if kind == "freeze_text":
        optimizer.text_lr_multiplier = 0.0
    if kind in ("heads", "last"):
        blocks = int(method.removeprefix("last")) if kind == "last" else 0
        optimizer.update(image_unlocked_blocks=blocks, text_unlocked_blocks=blocks)
    if kind == "lora":
        config.lora.rank = 8

    if texts == "prompts" or (not texts and not has_captions(source)):
        train = dataclasses.replace(train, prompts=tuple(getattr(source, "templates", ())) or TEMPLATES)
    config.data.train = train
    for name, evaluator in evaluators_of(held_out, open_source(held_out)).items():
        if train.prompts and hasattr(evaluator, "templates"):
            evaluator = dataclasses.replace(evaluator, templates=train.prompts)
        config.eval.evaluators[name] = evaluator
    config.eval.every_steps = config.checkpoint.every_steps = max(1, steps // 5)
    config.log.every_steps = max(1, steps // 50)
    return config


def _sources(data: str) -> tuple[SourceConfig, SourceConfig]:
    """What to train on, and what to evaluate on: a split of the data, or else every tenth record."""
    found = find_data(data)
    return found.split(len(open_source(found.train)))


def _read(argument: str) -> tuple[str, str, str, str, str]:
    """(checkpoint, data, method, loss, texts) of the argument. Raises ConfigError."""
    checkpoint, data, *words = argument.split(",") if "," in argument else ("", "")
    require(bool(checkpoint and data), f"'{argument}': expected CHECKPOINT,DATA, such as weights/clip,data/mine.")
    given: dict[str, str] = {}
    for word in words:
        kinds = [kind for kind, known in WORDS.items() if re.fullmatch(known, word)]
        require(bool(kinds), f"'{word}' is no method, loss or kind of texts: {', '.join(WORDS.values())}.")
        other = given.setdefault(kinds[0], word)
        require(
            other == word,
            f"'{other}' and '{word}' are two choices for the {kinds[0]}, of which there can be one: leave one out.",
        )
    return checkpoint, data, *(given.get(kind, default) for kind, default in DEFAULTS.items())
